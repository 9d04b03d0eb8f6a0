#!/usr/bin/env bash
# GCC 12: _tile_loadconfig(&shape) does not keep the stores that fill `shape`.
#
# An AMX tile configuration has 64 bytes, and the instruction reads them all. amxtileintrin.h of GCC 12 declares that the
# intrinsic reads a pointer's size of them, 8 bytes. An optimised build therefore drops the stores to the other 56 when
# nothing else reads the structure, and the tiles get the shapes that happened to lie on the stack. One line in front of
# it, asm volatile("" :: "m"(shape)), keeps them.
#
# Expected: a shape for tile 0 is two stores, of its bytes a row (a word at offset 16) and of its rows (a byte at 48).
# Seen with g++ 12.2.0: neither is in the code; with the line, both are. Debian 12 and its Python images have this
# compiler. In llama-cpp-python 0.3.36, compiled there for a processor with AMX, llama.cpp dies in its first product.
#
# Compiles to assembly and runs nothing. Needs GCC 12 as c++; ends with 2 without it, with 1 if this is no longer seen.
set -euo pipefail
[ "$(c++ -dumpversion | cut -d. -f1)" = 12 ] || { echo "c++ is $(c++ --version | head -1), not GCC 12"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/shape.cpp" <<'CPP'
#include <cstdint>
#include <immintrin.h>

struct alignas(64) Shape {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

void load_shape(int row_bytes, int rows) {
  Shape shape{};
  shape.palette = 1;
  shape.row_bytes[0] = uint16_t(row_bytes);
  shape.rows[0] = uint8_t(rows);
#ifdef WITH_LINE
  asm volatile("" ::"m"(shape));
#endif
  _tile_loadconfig(&shape);
}
CPP

# The arguments arrive in di and sil. Only a store of them can carry them into the structure.
stores() {
  c++ -O2 -std=c++17 -mamx-tile "$@" -S -o - "$work/shape.cpp" | grep -cE 'mov[bw]\s+%(di|sil),' || true
}
without=$(stores)
with_line=$(stores -DWITH_LINE)
c++ --version | head -1
echo "stores of the two arguments: $without; with the line: $with_line"
[ "$without" = 0 ] && [ "$with_line" = 2 ] && echo "as described" || { echo "this has changed"; exit 1; }
