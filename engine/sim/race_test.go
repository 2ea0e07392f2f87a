//go:build race

package sim_test

// A history has one thread, so that there is little for the race detector to see: between histories, in what they share.
const defaultSeeds = 50
