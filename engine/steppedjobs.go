package engine

import "context"

// What a person has a node in steps do. These methods wait, and ask the device. Who ends the node ends ctx first.

// Verify compares mirrors with the volume; all of them, where no name is given.
func (p *SteppedPrimary) Verify(ctx context.Context, o VerifyOptions) ([]VerifyResult, error) {
	return p.p.verify(ctx, o, func(CheckProgress) {})
}

// Repair repairs mirrors.
func (p *SteppedPrimary) Repair(ctx context.Context, o RepairOptions) ([]RepairResult, error) {
	return p.p.repair(ctx, o, func(CheckProgress) {})
}

// Scrub compares the device with the index.
func (p *SteppedPrimary) Scrub(ctx context.Context) ([]ScrubResult, error) {
	return p.p.scrub(ctx, ScrubOptions{}, nil)
}

// Rotten are the blocks that scrubs have found rotten and that were not written as a whole since.
func (p *SteppedPrimary) Rotten() []uint64 { return p.p.scrubs.rotten() }

// Scrub compares the device with the index.
func (x *SteppedMirror) Scrub(ctx context.Context) ([]ScrubResult, error) {
	return x.m.scrub(ctx, ScrubOptions{}, nil)
}
