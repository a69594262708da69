// The program that a module is under sanitizers. Without arguments it prints "name: parameters" of each kernel; with a
// file it runs the job that lies there and writes the buffers back over it.
// A job is words of 8 bytes: lengths of name and of the Launch, count of arguments, then name and Launch, then for each
// argument its kind (0 value, 1 buffer, 2 the buffer of an earlier argument, 3 null), its size or that argument, its bytes.
#include "fibers.h"
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

extern "C" const char* emulator_launch(const char* name, void** values, const emulator::Launch* how);

static unsigned long long word(FILE* file) {
    unsigned long long value = 0;
    if (fread(&value, 8, 1, file) != 1) abort();
    return value;
}
int main(int count, char** words) {
    if (count < 2) {
        for (const emulator::Kernel* k = emulator::kernels; k->name; ++k) printf("%s: %s\n", k->name, k->parameters());
        return 0;
    }
    FILE* file = fopen(words[1], "r+b");
    if (!file) abort();
    std::string name(word(file), ' ');
    emulator::Launch how;
    if (word(file) != sizeof how) abort();
    size_t arguments = word(file);
    if (fread(&name[0], 1, name.size(), file) != name.size() || fread(&how, sizeof how, 1, file) != 1) abort();
    struct Buffer { char* bytes; size_t size; long place; };
    std::vector<Buffer> buffers(arguments);
    std::vector<void*> values(arguments);
    for (size_t k = 0; k < arguments; ++k) {
        unsigned long long kind = word(file), size = word(file);
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
        if (buffer.size && (fseek(file, buffer.place, SEEK_SET) || fwrite(buffer.bytes, 1, buffer.size, file) != buffer.size))
            abort();
    fclose(file);
    return 0;
}
