// Memory of one call, freed together. No C++ library: nothing shared that one instruction set could compile
// for all of them.
#pragma once

#include <stdlib.h>
#include <string.h>

#include "abi.h"

namespace {

class Scratch {
   public:
    ~Scratch() {
        while (used_) free(blocks_[--used_]);
    }

    // `count` zeroed items, and room to read a register beyond them; null when there is no memory.
    template <class T>
    T *zeroed(int64_t count) {
        if (used_ == LIMIT || count < 0 || count > LARGEST) return missing<T>();
        return keep<T>(calloc((size_t)count * sizeof(T) + 64, 1));
    }

    // The same, not cleared.
    template <class T>
    T *raw(int64_t count) {
        if (used_ == LIMIT || count < 0 || count > LARGEST) return missing<T>();
        return keep<T>(aligned_alloc(64, ((size_t)count * sizeof(T) + 127) / 64 * 64));
    }

    bool failed() const { return failed_; }

   private:
    static const int LIMIT = 32;
    static const int64_t LARGEST = (int64_t)1 << 32;
    void *blocks_[LIMIT];
    int used_ = 0;
    bool failed_ = false;

    template <class T>
    T *missing() {
        failed_ = true;
        return nullptr;
    }

    template <class T>
    T *keep(void *block) {
        if (!block) return missing<T>();
        blocks_[used_++] = block;
        return (T *)block;
    }
};

}  // namespace
