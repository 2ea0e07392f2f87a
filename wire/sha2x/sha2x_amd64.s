#include "textflag.h"

// Two messages, A and B, each in its own registers. The instructions of one fill the gaps that the
// latency of the other leaves; the processor's renaming keeps their uses of X0 apart.
//
//	X0        message words plus constants: the implicit operand of sha256rnds2
//	X1, X2    A: state A B E F, and C D G H
//	X3..X6    A: the last 16 words of the message schedule
//	X7, X8    B: state
//	X9..X12   B: message schedule
//	X13       scratch
//	X15       byte order of message words

// ROUNDS does four rounds with the words in M and the constants at offset K.
#define ROUNDS(S0, S1, M, K) \
	MOVOU       K(R8), X0   \
	PADDL       M, X0       \
	SHA256RNDS2 X0, S0, S1  \
	PSHUFD      $0x0e, X0, X0 \
	SHA256RNDS2 X0, S1, S0

// SCHEDULE replaces the oldest four words, M0, by the next four.
#define SCHEDULE(M0, M1, M2, M3) \
	SHA256MSG1 M1, M0       \
	MOVO       M3, X13      \
	PALIGNR    $4, M2, X13  \
	PADDL      X13, M0      \
	SHA256MSG2 M3, M0

#define LOAD(P, M0, M1, M2, M3) \
	MOVOU  0(P), M0  \
	MOVOU  16(P), M1 \
	MOVOU  32(P), M2 \
	MOVOU  48(P), M3 \
	PSHUFB X15, M0   \
	PSHUFB X15, M1   \
	PSHUFB X15, M2   \
	PSHUFB X15, M3

// BOTH does four rounds of both messages and makes the words for the four that come sixteen later.
#define BOTH(A0, A1, A2, A3, B0, B1, B2, B3, K) \
	ROUNDS(X1, X2, A0, K)    \
	ROUNDS(X7, X8, B0, K)    \
	SCHEDULE(A0, A1, A2, A3) \
	SCHEDULE(B0, B1, B2, B3)

#define LAST(A0, B0, K) \
	ROUNDS(X1, X2, A0, K) \
	ROUNDS(X7, X8, B0, K)

// FOLD adds the chaining value at S to the registers and keeps the sum.
#define FOLD(S, S0, S1) \
	MOVOU 0(S), X13  \
	PADDL X13, S0    \
	MOVOU S0, 0(S)   \
	MOVOU 16(S), X13 \
	PADDL X13, S1    \
	MOVOU S1, 16(S)

// func blocks(a, b *state, p, q *byte, n int)
TEXT ·blocks(SB), NOSPLIT, $0-40
	MOVQ  a+0(FP), AX
	MOVQ  b+8(FP), BX
	MOVQ  p+16(FP), SI
	MOVQ  q+24(FP), DI
	MOVQ  n+32(FP), CX
	LEAQ  constants<>(SB), R8
	MOVOU byteOrder<>(SB), X15
	MOVOU 0(AX), X1
	MOVOU 16(AX), X2
	MOVOU 0(BX), X7
	MOVOU 16(BX), X8

next:
	LOAD(SI, X3, X4, X5, X6)
	LOAD(DI, X9, X10, X11, X12)
	BOTH(X3, X4, X5, X6, X9, X10, X11, X12, 0)
	BOTH(X4, X5, X6, X3, X10, X11, X12, X9, 16)
	BOTH(X5, X6, X3, X4, X11, X12, X9, X10, 32)
	BOTH(X6, X3, X4, X5, X12, X9, X10, X11, 48)
	BOTH(X3, X4, X5, X6, X9, X10, X11, X12, 64)
	BOTH(X4, X5, X6, X3, X10, X11, X12, X9, 80)
	BOTH(X5, X6, X3, X4, X11, X12, X9, X10, 96)
	BOTH(X6, X3, X4, X5, X12, X9, X10, X11, 112)
	BOTH(X3, X4, X5, X6, X9, X10, X11, X12, 128)
	BOTH(X4, X5, X6, X3, X10, X11, X12, X9, 144)
	BOTH(X5, X6, X3, X4, X11, X12, X9, X10, 160)
	BOTH(X6, X3, X4, X5, X12, X9, X10, X11, 176)
	LAST(X3, X9, 192)
	LAST(X4, X10, 208)
	LAST(X5, X11, 224)
	LAST(X6, X12, 240)
	FOLD(AX, X1, X2)
	FOLD(BX, X7, X8)
	ADDQ $64, SI
	ADDQ $64, DI
	DECQ CX
	JNZ  next
	RET

// Words of a message are big-endian.
DATA byteOrder<>+0(SB)/8, $0x0405060700010203
DATA byteOrder<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL byteOrder<>(SB), RODATA|NOPTR, $16

// The round constants of FIPS 180-4, section 4.2.2.
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256
