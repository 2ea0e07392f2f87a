package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// expectMirror holds a mirror's image against what is claimed of it.
func (r *run) expectMirror(ctx context.Context, args []any) error {
	name := args[0].(string)
	return r.look(ctx, name, func(path string) error {
		v, err := r.history.JudgeFile(path)
		if err != nil {
			return err
		}
		for _, claim := range args[1:] {
			if err := r.claim(ctx, name, path, v, claim.(string)); err != nil {
				return fmt.Errorf("not %s: %w", claim, err)
			}
		}
		if v.Wrong == nil {
			r.looks[name] = v
		}
		return nil
	})
}

func (r *run) claim(ctx context.Context, name, path string, v stamp.Verdict, claim string) error {
	switch claim {
	case "is-a-cut":
		if v.Wrong != nil {
			return errors.New(Explain(v))
		}
	case "not-older-than-last-look":
		before, ok := r.looks[name]
		switch {
		case !ok:
			return nil
		case v.Wrong != nil:
			return errors.New(Explain(v))
		}
		return r.history.Forward(before.Cut, v.Cut)
	case "not-older-than-last-in-sync":
		return r.history.DurableFile(path, r.synced)
	case "equal":
		return r.equal(ctx, path)
	case "unchanged":
		sum, err := checksum(path)
		if err == nil && sum != r.sums[name] {
			err = fmt.Errorf("the image is not what it was when it was remembered; it shows the volume at instant %d of %d", v.At, v.Now)
		}
		return err
	}
	return nil
}

// Explain tells what an image shows, in a few lines.
func Explain(v stamp.Verdict) string {
	var b bytes.Buffer
	if v.Wrong == nil {
		fmt.Fprintf(&b, "a cut: the volume as it was between the instants %d and %d of %d\n", v.Cut.First, v.Cut.Last, v.Now)
	} else {
		fmt.Fprintf(&b, "no cut: the volume never was like this\n  first violation: %s\n", v.Why)
		fmt.Fprintf(&b, "  at instant %d of %d, the nearest: %d pages fit, %d are older, %d are newer, %d hold garbage\n", v.At, v.Now, v.Fit, v.Older, v.Newer, v.Bad)
	}
	fmt.Fprintf(&b, "  writes: %d there, %d missing, %d there in part", v.Counts[stamp.There], v.Counts[stamp.Missing], v.Counts[stamp.Torn])
	return b.String()
}

// equal compares what users of the primary see with an image, while nobody writes.
func (r *run) equal(ctx context.Context, path string) error {
	if r.writer != nil && !r.resting {
		return errors.New("the writer does not rest, so there is nothing to compare with")
	}
	d, err := r.primary(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const piece = 1 << 20
	ours, theirs := make([]byte, piece), make([]byte, piece)
	first, count := int64(-1), 0
	for off := int64(0); off < r.s.Size; off += piece {
		if err := d.Read(ours, off); err != nil {
			return err
		}
		if n, err := f.ReadAt(theirs, off); n < piece {
			return fmt.Errorf("read %s at %d: %w", path, off, err)
		}
		for at := 0; at < piece; at += stamp.PageSize {
			if !bytes.Equal(ours[at:at+stamp.PageSize], theirs[at:at+stamp.PageSize]) {
				if count++; first < 0 {
					first = (off + int64(at)) / stamp.PageSize
				}
			}
		}
	}
	if count > 0 {
		return fmt.Errorf("%d pages differ from the primary's, the first is page %d", count, first)
	}
	return nil
}

// primary opens what users of the primary see.
func (r *run) primary(ctx context.Context) (stamp.Disk, error) {
	if !r.nodes["primary"].running() {
		return nil, errors.New("the primary does not run")
	}
	load, err := r.target(ctx)
	if err != nil {
		return nil, err
	}
	return stamp.Open(load)
}

// expectPrimary reads all that users of the primary see.
func (r *run) expectPrimary(ctx context.Context, _ []any) error {
	if r.writer != nil && !r.resting {
		return errors.New("the writer does not rest, so there is nothing to compare with")
	}
	d, err := r.primary(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	return r.history.Complete(d)
}

func (r *run) expectCarried(_ context.Context, args []any) error {
	if n, limit := r.link(args).carried.Load(), args[1].(int64); n >= limit {
		return fmt.Errorf("%d bytes passed over the link, %d are too many", n, limit)
	}
	return nil
}

func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
