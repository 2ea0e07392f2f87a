package sha2x

import "github.com/klauspost/cpuid/v2"

var fast = cpuid.CPU.Supports(cpuid.SHA, cpuid.SSSE3, cpuid.SSE4)

// blocks folds n blocks of 64 bytes at p and at q into a and b.
//
//go:noescape
func blocks(a, b *state, p, q *byte, n int)
