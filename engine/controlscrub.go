package engine

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// POST /scrub?volume=[&rate=BYTES] answers like /verify (controljobs.go), with one ScrubResult.

func (s *server) answerScrub(w http.ResponseWriter, r *http.Request) {
	rate, err := strconv.ParseInt(cmp.Or(r.FormValue("rate"), "0"), 10, 64)
	if err != nil || rate < 0 {
		answerJSON(w, nil, badJob("scrub", r, "bad rate", "give a rate in bytes a second, or none"))
		return
	}
	answerJob(s, w, r, func(ctx context.Context, v liveVolume, tell func(CheckProgress)) ([]ScrubResult, error) {
		return v.scrub(ctx, ScrubOptions{Rate: rate}, tell)
	})
}

// Scrub has a node compare its own device of a volume with its own index, whatever its role. Rot is no error: it
// is in the result. For the rest as Verify; an error may come with the result of what was looked at before.
func Scrub(ctx context.Context, control, volume string, o ScrubOptions, tell func(CheckProgress)) ([]ScrubResult, error) {
	values := url.Values{"volume": {volume}}
	if o.Rate != 0 {
		values.Set("rate", strconv.FormatInt(o.Rate, 10))
	}
	return followDaemon[ScrubResult](ctx, control, "scrub", values, tell)
}
