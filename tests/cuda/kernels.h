// The way into kernels: their parameters described, their arguments taken from an array of pointers as by cuLaunchKernel.
#pragma once
namespace emulator {

// Writes the description of a type, and gives the place after it.
template <class T> static char* describe(char* text) {
    if constexpr (std::is_pointer_v<T>) {
        using Element = std::remove_cv_t<std::remove_pointer_t<T>>;
        *text++ = '*';
        if constexpr (std::is_void_v<Element>) return text + sprintf(text, "v0");
        else return describe<Element>(text);
    } else {
        char kind = std::is_floating_point_v<T> ? 'f' : std::is_same_v<T, bool> ? 'b' : !std::is_integral_v<T> ? 's'
                  : std::is_signed_v<T> ? 'i' : 'u';
        return text + sprintf(text, "%c%zu", kind, sizeof(T));
    }
}

template <auto function> struct Entry;
template <class... A, void (*function)(A...)> struct Entry<function> {
    template <size_t... I> static void apply(void** values, std::index_sequence<I...>) { function(*(A*)values[I]...); }
    static void call(void** values) { apply(values, std::index_sequence_for<A...>{}); }
    static const char* parameters() {
        static char all[32 * sizeof...(A) + 1], *end;
        end = all;
        ((end = describe<A>(end), *end++ = ' '), ...);
        return all;
    }
};

}  // namespace emulator
#define EMULATOR_KERNEL(name) {#name, emulator::Entry<name>::call, emulator::Entry<name>::parameters},
#define EMULATOR_KERNELS(list) const emulator::Kernel emulator::kernels[] = {list {}};
