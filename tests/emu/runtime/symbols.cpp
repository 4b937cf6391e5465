// Names and source lines: what the module that holds the kernels says about itself in its ELF
// symbol table and, through addr2line, its debug information.
#include <cxxabi.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "state.h"

namespace emu::internal {
namespace {

struct Query {
  uintptr_t address = 0;  // wanted: the module that has it; 0: the one loaded at `base`
  uintptr_t base = 0;
  std::string path;
  std::vector<std::pair<uintptr_t, uintptr_t>> read_only;
  std::pair<uintptr_t, uintptr_t> thread_locals{0, 0};
  bool found = false;
};

int visit_module(dl_phdr_info* info, size_t, void* data) {
  auto& query = *static_cast<Query*>(data);
  const uintptr_t base = info->dlpi_addr;
  bool wanted = query.address == 0 && base == query.base;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    wanted |= query.address != 0 && header.p_type == PT_LOAD &&
              query.address - (base + header.p_vaddr) < header.p_memsz;
  }
  if (!wanted) return 0;
  query.found = true;
  query.base = base;
  query.path = info->dlpi_name;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    const uintptr_t begin = base + header.p_vaddr;
    if (header.p_type == PT_LOAD && (header.p_flags & PF_W) == 0) {
      query.read_only.emplace_back(begin, begin + header.p_memsz);
    }
    if (header.p_type == PT_TLS && info->dlpi_tls_data != nullptr) {
      const auto data_begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
      query.thread_locals = {data_begin, data_begin + header.p_memsz};
    }
  }
  return 1;
}

template <class T>
const T* at(const std::string& file, size_t offset, size_t count = 1) {
  if (offset + count * sizeof(T) > file.size()) return nullptr;
  return reinterpret_cast<const T*>(file.data() + offset);
}

void add_symbols(const std::string& file, const Elf64_Shdr* sections, size_t index,
                 Module& module) {
  const Elf64_Shdr& table = sections[index];
  const Elf64_Shdr& names = sections[table.sh_link];
  const size_t count = table.sh_size / sizeof(Elf64_Sym);
  const auto* symbols = at<Elf64_Sym>(file, table.sh_offset, count);
  if (symbols == nullptr) return;
  for (size_t i = 0; i < count; ++i) {
    const Elf64_Sym& symbol = symbols[i];
    const int type = ELF64_ST_TYPE(symbol.st_info);
    if (symbol.st_shndx == SHN_UNDEF || (type != STT_FUNC && type != STT_TLS)) continue;
    const char* name = at<char>(file, names.sh_offset + symbol.st_name);
    auto& list = type == STT_FUNC ? module.functions : module.thread_locals;
    list.push_back({symbol.st_value, symbol.st_size, name});
  }
}

void read_elf(Module& module) {
  std::ifstream stream(module.path, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(stream)),
                         std::istreambuf_iterator<char>());
  const auto* header = at<Elf64_Ehdr>(file, 0);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return;
  const auto* sections = at<Elf64_Shdr>(file, header->e_shoff, header->e_shnum);
  if (sections == nullptr) return;
  const size_t names = sections[header->e_shstrndx].sh_offset;
  for (size_t i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type == SHT_SYMTAB) add_symbols(file, sections, i, module);
    if (std::strcmp(at<char>(file, names + sections[i].sh_name), "emu_constant") == 0) {
      const uintptr_t begin = module.base + sections[i].sh_addr;
      module.constants = {begin, begin + sections[i].sh_size};
    }
  }
  auto by_value = [](const ModuleSymbol& a, const ModuleSymbol& b) { return a.value < b.value; };
  std::sort(module.functions.begin(), module.functions.end(), by_value);
  std::sort(module.thread_locals.begin(), module.thread_locals.end(), by_value);
}

std::string executable_path() {
  char buffer[4096];
  const ssize_t length = readlink("/proc/self/exe", buffer, sizeof(buffer));
  return length > 0 ? std::string(buffer, static_cast<size_t>(length)) : std::string();
}

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

}  // namespace

Module& module_of(const void* code) {
  static std::vector<std::unique_ptr<Module>> modules;
  static std::unordered_map<const void*, Module*> by_code;
  Module*& known = by_code[code];
  if (known != nullptr) return *known;
  Query query;
  query.address = reinterpret_cast<uintptr_t>(code);
  dl_iterate_phdr(visit_module, &query);
  if (!query.found) throw std::runtime_error("emulator: a kernel outside any loaded module");
  for (const auto& module : modules) {
    if (module->base == query.base) return *(known = module.get());
  }
  auto module = std::make_unique<Module>();
  module->path = query.path.empty() ? executable_path() : query.path;
  module->base = query.base;
  module->read_only = query.read_only;
  read_elf(*module);
  if (module->functions.empty()) {
    throw std::runtime_error("emulator: '" + module->path +
                             "' has no symbol table; build it without stripping (shared memory "
                             "is found through it)");
  }
  modules.push_back(std::move(module));
  return *(known = modules.back().get());
}

std::pair<uintptr_t, uintptr_t> thread_local_segment(const Module& module) {
  Query query;
  query.base = module.base;
  dl_iterate_phdr(visit_module, &query);
  return query.thread_locals;
}

std::string demangle(const std::string& name) {
  int status = 0;
  char* text = ::abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 && text != nullptr ? text : name;
  std::free(text);
  // The namespace that the build adds (see CMakeLists.txt) is of no interest to a reader.
  const std::string added = "::emulated::";
  for (size_t i; (i = result.find(added)) != std::string::npos;)
    result.replace(i, added.size(), "::");
  return result;
}

std::string function_name(const void* code) {
  const Module& module = module_of(code);
  const uintptr_t offset = reinterpret_cast<uintptr_t>(code) - module.base;
  auto it = std::upper_bound(module.functions.begin(), module.functions.end(), offset,
                             [](uintptr_t o, const ModuleSymbol& s) { return o < s.value; });
  if (it == module.functions.begin()) return "unknown function";
  return demangle(std::prev(it)->name);
}

// "file:line", and the calls it was inlined into.
std::string source_line(const void* pc) {
  if (pc == nullptr) return "unknown source line";
  const Module& module = module_of(pc);
  // A return address is that of the next instruction.
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pc) - 1 - module.base;
  char number[32];
  std::snprintf(number, sizeof(number), "0x%zx", offset);
  const std::string command =
      "addr2line -i -e " + shell_quoted(module.path) + " " + number + " 2>/dev/null";
  std::string result;
  if (FILE* pipe = popen(command.c_str(), "r")) {
    char line[1024];
    while (std::fgets(line, sizeof(line), pipe) != nullptr) {
      std::string text(line);
      text = text.substr(0, text.find_first_of(" \n"));
      if (text.rfind("??", 0) == 0 || text.find("/emu_device/") != std::string::npos) continue;
      result += (result.empty() ? "" : ", inlined at ") + text;
    }
    pclose(pipe);
  }
  return result.empty() ? module.path + "+" + number : result;
}

}  // namespace emu::internal
