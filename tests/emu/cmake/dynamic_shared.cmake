# Script: writes the source file that defines the dynamic shared memory of emulated kernels.
#
# A kernel declares it under a name of its own, `extern __shared__ float tile[];`, which leaves an
# undefined thread-local symbol in its object file. Each such symbol becomes a name for one buffer,
# as all names of dynamic shared memory are on a device.
#
#   cmake -DOBJECTS=a.o,b.o -DREADELF=readelf -DTARGET=name -DOUTPUT=file.cpp -P dynamic_shared.cmake
set(names "")
string(REPLACE "," ";" objects "${OBJECTS}")
foreach(object IN LISTS objects)
  execute_process(COMMAND "${READELF}" -sW "${object}" OUTPUT_VARIABLE symbols
                  RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${READELF} failed on ${object}")
  endif()
  string(REGEX MATCHALL " TLS +GLOBAL +[A-Z]+ +UND +[^ \n]+" found "${symbols}")
  foreach(line IN LISTS found)
    string(REGEX REPLACE "^.* UND +" "" name "${line}")
    list(APPEND names "${name}")
  endforeach()
endforeach()
list(REMOVE_DUPLICATES names)

set(storage "emu_dynamic_shared_${TARGET}")
set(text ".pushsection .tbss,\"awT\",@nobits\n.balign 1024\n")
string(APPEND text ".globl ${storage}\n.hidden ${storage}\n.type ${storage}, @object\n")
string(APPEND text ".size ${storage}, 232448\n")
foreach(name IN LISTS names)
  string(APPEND text ".globl ${name}\n.hidden ${name}\n.type ${name}, @object\n${name}:\n")
endforeach()
string(APPEND text "${storage}:\n  .zero 232448\n.popsection\n")
file(WRITE "${OUTPUT}" "// Generated: the names of dynamic shared memory.\nasm(R\"(\n${text})\");\n")
