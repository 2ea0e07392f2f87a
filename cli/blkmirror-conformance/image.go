package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/blkmirror/blkmirror/conformance"
	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// verdict is what `check-image --json` prints.
type verdict struct {
	Image    string `json:"image"`
	Cut      bool   `json:"cut"`
	First    int64  `json:"first"` // the cut lies between these instants
	Last     int64  `json:"last"`
	Now      int64  `json:"now"` // the last instant of the history
	Reason   string `json:"reason,omitempty"`
	Pages    int    `json:"pages"`
	Fit      int    `json:"pages_fit"`
	Older    int    `json:"pages_older"`
	Newer    int    `json:"pages_newer"`
	Bad      int    `json:"pages_bad"`
	There    int    `json:"writes_there"`
	Missing  int    `json:"writes_missing"`
	Torn     int    `json:"writes_torn"`
	OldError string `json:"too_old,omitempty"`
}

func (a *app) checkImage(args []string) error {
	f := a.flags("check-image")
	history := f.String("history", "", "`FILE` that the writer wrote")
	since := f.String("not-older-than", "", "`INSTANT` of the history, or flushed: nothing that was answered, or flushed, by then may be missing")
	each := f.Bool("list", false, "print of each write whether it is there, missing or torn")
	disk := f.Bool("disk", false, "the image is of a disk after a power cut, which need not be a cut: only what --not-older-than says counts")
	asJSON := f.Bool("json", false, "one object on standard output, nothing else")
	paths, err := a.parse(f, args, 1, 1)
	if err != nil {
		return err
	}
	if *history == "" || *disk && *since == "" {
		return usageError{errors.New("check-image needs --history, and with --disk also --not-older-than")}
	}
	h, err := stamp.LoadHistory(*history)
	if err != nil {
		return err
	}
	v, err := h.JudgeFile(paths[0])
	if err != nil {
		return err
	}
	out := show(paths[0], v)
	if err := durable(h, paths[0], *since); err != nil {
		if misuse := (usageError{}); errors.As(err, &misuse) {
			return err
		}
		out.OldError = err.Error()
	}
	if *asJSON {
		err = a.printJSON(out)
	} else {
		err = a.printVerdict(h, v, out, *each)
	}
	if err == nil && (!out.Cut && !*disk || out.OldError != "") {
		err = errWrong
	}
	return err
}

func show(image string, v stamp.Verdict) verdict {
	return verdict{
		Image: image, Cut: v.Wrong == nil, First: int64(v.Cut.First), Last: int64(v.Cut.Last), Now: int64(v.Now), Reason: v.Why,
		Pages: v.Pages, Fit: v.Fit, Older: v.Older, Newer: v.Newer, Bad: v.Bad,
		There: v.Counts[stamp.There], Missing: v.Counts[stamp.Missing], Torn: v.Counts[stamp.Torn],
	}
}

// durable expects that an image is not older than an instant.
func durable(h *stamp.History, image, since string) error {
	var by stamp.Tick
	switch since {
	case "":
		return nil
	case "flushed":
		by = h.Flushed()
	default:
		n, err := strconv.ParseInt(since, 10, 64)
		if err != nil || n < 0 || stamp.Tick(n) > h.Now() {
			return usageError{fmt.Errorf("--not-older-than %q: the history has the instants 0 to %d", since, h.Now())}
		}
		by = stamp.Tick(n)
	}
	return h.DurableFile(image, by)
}

func (a *app) printVerdict(h *stamp.History, v stamp.Verdict, out verdict, each bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s\n", out.Image, conformance.Explain(v))
	if out.OldError != "" {
		fmt.Fprintf(&b, "  too old: %s\n", out.OldError)
	}
	if each {
		for i, fate := range v.Fates {
			fmt.Fprintf(&b, "%-8s %s\n", fate, h.Describe(stamp.Seq(i+1)))
		}
	}
	_, err := fmt.Fprint(a.stdout, b.String())
	return err
}
