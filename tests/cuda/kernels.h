// The way in: kernels by name, their parameters described, arguments passed as an array of pointers. A shared object
// exports three functions; a program of its own (FARSUM_EMULATOR_MAIN) reads one launch from a file.
#pragma once
namespace emulator {

// "f4 i8 u2" for scalars, "s24" for structures, "*f4" for a pointer to one; sizes in bytes.
template <class T> static std::string describe() {
    if constexpr (std::is_pointer_v<T>) {
        using Element = std::remove_cv_t<std::remove_pointer_t<T>>;
        if constexpr (std::is_void_v<Element>) return "*v0";
        else return "*" + describe<Element>();
    } else {
        char kind = std::is_floating_point_v<T> ? 'f' : std::is_same_v<T, bool> ? 'b' : !std::is_integral_v<T> ? 's'
                  : std::is_signed_v<T> ? 'i' : 'u';
        return kind + std::to_string(sizeof(T));
    }
}

template <auto function> struct Entry;
template <class... A, void (*function)(A...)> struct Entry<function> {
    template <size_t... I> static void apply(void** values, std::index_sequence<I...>) { function(*(A*)values[I]...); }
    static void call(void** values) { apply(values, std::index_sequence_for<A...>{}); }
    static const char* parameters() {
        static const std::string all = ((describe<A>() + " ") + ... + "");
        return all.c_str();
    }
};

struct Kernel { const char* name; void (*call)(void**); const char* (*parameters)(); };
extern const Kernel kernels[];
static const Kernel* find(const char* name) {
    for (const Kernel* k = kernels; k->name; ++k) if (!strcmp(k->name, name)) return k;
    return nullptr;
}
}  // namespace emulator
#define EMULATOR_KERNEL(name) {#name, emulator::Entry<name>::call, emulator::Entry<name>::parameters},
#define EMULATOR_KERNELS(list) const emulator::Kernel emulator::kernels[] = {list {}};

#define EMULATOR_EXPORT extern "C" __attribute__((visibility("default")))
EMULATOR_EXPORT const char* emulator_parameters(const char* name) { return emulator::find(name)->parameters(); }
EMULATOR_EXPORT const char* emulator_launch(const char* name, void** values, const emulator::Launch* how) {
    return emulator::launch(emulator::find(name)->call, values, *how);
}

#ifdef FARSUM_EMULATOR_MAIN
// program: prints "name: parameters" of each kernel. program JOB: runs the job and writes the buffers back over it.
// A job is words of 8 bytes: lengths of name and of the Launch, count of arguments, then name and Launch, then for each
// argument its kind (0 value, 1 buffer, 2 the buffer of an earlier argument, 3 null), its size or that argument, its bytes.
static unsigned long long emulator_word(FILE* file) {
    unsigned long long word = 0;
    if (fread(&word, 8, 1, file) != 1) abort();
    return word;
}
int main(int count, char** words) {
    if (count < 2) {
        for (const emulator::Kernel* k = emulator::kernels; k->name; ++k) printf("%s: %s\n", k->name, k->parameters());
        return 0;
    }
    FILE* file = fopen(words[1], "r+b");
    if (!file) abort();
    std::string name(emulator_word(file), ' ');
    emulator::Launch how;
    if (emulator_word(file) != sizeof how) abort();
    size_t arguments = emulator_word(file);
    if (fread(&name[0], 1, name.size(), file) != name.size() || fread(&how, sizeof how, 1, file) != 1) abort();
    struct Buffer { char* bytes; size_t size; long place; };
    std::vector<Buffer> buffers(arguments);
    std::vector<void*> values(arguments);
    for (size_t k = 0; k < arguments; ++k) {
        unsigned long long kind = emulator_word(file), size = emulator_word(file);
        Buffer& buffer = buffers[k] = {nullptr, 0, 0};
        values[k] = &buffer.bytes;
        if (kind == 2) buffer.bytes = buffers[size].bytes;
        if (kind > 1) continue;
        // Of exactly its size, so that the sanitizer sees the first byte past the end.
        if (posix_memalign((void**)&buffer.bytes, 256, size)) abort();
        buffer.place = ftell(file);
        if (fread(buffer.bytes, 1, size, file) != size) abort();
        if (kind == 0) values[k] = buffer.bytes;
        else buffer.size = size;
    }
    const char* failed = emulator_launch(name.c_str(), values.data(), &how);
    if (*failed) return fprintf(stderr, "%s\n", failed), 3;
    for (Buffer& buffer : buffers)
        if (buffer.size && (fseek(file, buffer.place, SEEK_SET) || fwrite(buffer.bytes, 1, buffer.size, file) != buffer.size)) abort();
    fclose(file);
    return 0;
}
#endif
