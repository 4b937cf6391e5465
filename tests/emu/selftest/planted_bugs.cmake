#Which planted bugs the sanitizers have to report, and how.
#fusedloss_expect_report(<kernel><what the report says><n><k>) : in CMakeLists.txt.
fusedloss_expect_report(write_past_end "WRITE of size 4.*write_past_end_kernel" 64 1)
    fusedloss_expect_report(read_past_end "READ of size 4.*read_past_end_kernel" 64 1)
        fusedloss_expect_report(dynamic_shared_past_end
                                "WRITE of size 4.*dynamic_shared_past_end_kernel" 64 1)
            fusedloss_expect_report(static_shared_past_end
                                    "index 64 out of bounds for type 'float" 64 1)
                fusedloss_expect_report(misaligned_float4
                                        "misaligned address.*requires 16 byte alignment" 8 1)
                    fusedloss_expect_report(
                        signed_overflow "signed integer overflow: 2147483647 \\+ 1" 2147483647 1)
