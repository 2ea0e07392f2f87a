package engine

import (
	"slices"
	"testing"
	"time"
)

func TestRatesAt(t *testing.T) {
	const mb = 1 << 20
	day := RateEntry{From: 8 * 60, To: 18 * 60, Limit: 20 * mb}
	night := RateEntry{From: 22 * 60, To: 6 * 60, Limit: 100 * mb}
	noon := RateEntry{From: 12 * 60, To: 13 * 60, Limit: 5 * mb}
	always := RateEntry{Limit: 50 * mb}
	for _, c := range []struct {
		rates Rates
		at    string
		want  int64
	}{
		{nil, "12:00", 0},
		{Rates{day}, "07:59", 0}, {Rates{day}, "08:00", 20 * mb}, {Rates{day}, "17:59", 20 * mb}, {Rates{day}, "18:00", 0},
		{Rates{night}, "21:59", 0}, {Rates{night}, "22:00", 100 * mb}, {Rates{night}, "00:00", 100 * mb}, {Rates{night}, "05:59", 100 * mb}, {Rates{night}, "06:00", 0},
		{Rates{day, night}, "20:00", 0}, {Rates{day, night, noon}, "12:30", 5 * mb}, {Rates{noon, day}, "12:30", 5 * mb},
		{Rates{always}, "00:00", 50 * mb}, {Rates{always}, "23:59", 50 * mb}, {Rates{always, night}, "23:59", 50 * mb}, {Rates{day, always}, "09:00", 20 * mb},
	} {
		clock, err := time.ParseInLocation("2006-01-02 15:04", "2024-05-01 "+c.at, time.Local)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.rates.At(clock); got != c.want {
			t.Errorf("%v at %s: %d, want %d", c.rates, c.at, got, c.want)
		}
	}
}

func TestRateSpan(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     RateEntry
	}{{"08:00", "18:30", RateEntry{From: 480, To: 1110}}, {"00:00", "24:00", RateEntry{}}, {"23:59", "00:00", RateEntry{From: 1439}}} {
		var e RateEntry
		if err := e.ParseSpan(c.from, c.to); err != nil || e != c.want {
			t.Errorf("%s to %s: %v, %v", c.from, c.to, e, err)
		}
	}
	for _, bad := range []string{"", "8", "8:00", "08:60", "25:00", "24:01", "08:00:00", "-1:00", "noon"} {
		if err := new(RateEntry).ParseSpan("00:00", bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestCheckCongestion(t *testing.T) {
	for name, ok := range map[string]bool{"auto": true, "default": true, "bbr": true, "dctcp-2": true, "": false, "BBR": false, "a b": false, "sixteen_letters_": false} {
		if err := CheckCongestion(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A mirror has its own limit, or the volume's. Both change at once with the configuration, and no mirror is compared anew
// for that.
func TestRateOfAMirror(t *testing.T) {
	const mb = 1 << 20
	limit := func(n int64) Rates { return Rates{{Limit: n * mb}} }
	p := newLivePair(t, 2, func(i int, c *VolumeConfig) {
		if i < 0 {
			c.Rate, c.Mirrors[0].Rate = limit(20), limit(10)
		}
	})
	expect := func(want ...int64) {
		t.Helper()
		eventually(t, "the limits", func() bool {
			for i, m := range p.primary.status().Mirrors {
				if m.Flow == nil || m.Flow.Limit != want[i]*mb || m.Flow.Pacing != want[i]*mb {
					return false
				}
			}
			return true
		})
	}
	p.settle()
	expect(10, 20)
	p.primary.stop()
	p.primary.reload = make(chan map[string]VolumeConfig)
	p.primary.start()
	p.settle()
	expect(10, 20)
	for _, want := range [][2]int64{{30, 40}, {5, 5}} {
		c := p.primary.volume
		c.Rate, c.Mirrors = limit(5), slices.Clone(c.Mirrors)
		for i, n := range want {
			if c.Mirrors[i].Rate = limit(n); n == 5 {
				c.Mirrors[i].Rate = nil
			}
		}
		p.primary.reload <- map[string]VolumeConfig{"v": c}
		expect(want[:]...)
	}
	for i, m := range p.primary.status().Mirrors {
		if m.Reconnects != 0 || p.primary.logged("is left away")+p.primary.logged("is new") > 0 {
			t.Errorf("mirror %d began anew: %+v", i, m)
		}
	}
}
