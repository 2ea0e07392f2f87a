package wire

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// randomProbe makes a valid message of a probe, with values at and between the limits.
func randomProbe(r *rand.Rand, kind Type) Message {
	text := func(limit int) string { return strings.Repeat("ä€x", r.IntN(limit+1)/6) }
	switch kind {
	case TypeSurvey:
		return &Survey{From: r.Uint32()}
	case TypeSurveyed:
		m := &Surveyed{
			int64(r.Uint64()), r.Int64(), r.Int64(), r.Int64(), uint16(r.Uint32()), text(MaxName), text(MaxState), false, nil,
		}
		for range r.IntN(MaxVolumes + 1) {
			role := []Role{0, RolePrimary, RoleMirror}[r.IntN(3)]
			m.Volumes = append(m.Volumes, SurveyedVolume{r.Int64(), role, text(MaxName), text(MaxState)})
		}
		m.More = len(m.Volumes) > 0 && r.IntN(2) == 0
		return m
	case TypeLoad:
		return &Load{Direction(1 + r.IntN(2)), 1 + r.Uint32N(MaxLoadMillis), 1 + r.Uint64N(MaxLoadBytes)}
	case TypeLoaded:
		return &Loaded{r.Uint64(), r.Uint64(), r.Uint64(), LoadedFlags(r.IntN(2))}
	case TypeBallast:
		return &Ballast{Seq: r.Uint64(), PayloadLength: 1 + r.IntN(MaxBallast)}
	}
	return nil
}

// brokenProbe lists messages of probes that break a rule, for TestBroken.
func brokenProbe() map[string]Message {
	surveyed := func(f func(*Surveyed)) Message { m := *sample(TypeSurveyed).(*Surveyed); f(&m); return &m }
	volume := func(v SurveyedVolume) Message {
		return surveyed(func(m *Surveyed) { m.Volumes = []SurveyedVolume{v} })
	}
	return map[string]Message{
		"probe of a volume":     &Hello{Role: RoleProbe, Volume: "db"},
		"probe with blocks":     &Hello{Role: RoleProbe, BlockSize: MinBlock},
		"role above probe":      &Hello{Role: RoleProbe + 1},
		"surveyed receive":      surveyed(func(m *Surveyed) { m.ReceiveMax = -1 }),
		"surveyed send":         surveyed(func(m *Surveyed) { m.SendMax = -1 }),
		"surveyed speed":        surveyed(func(m *Surveyed) { m.HashSpeed = -1 }),
		"surveyed version":      surveyed(func(m *Surveyed) { m.Version = "v1\n" }),
		"surveyed congestion":   surveyed(func(m *Surveyed) { m.Congestion = strings.Repeat("c", MaxState+1) }),
		"surveyed more":         surveyed(func(m *Surveyed) { m.Volumes = nil }),
		"surveyed many":         surveyed(func(m *Surveyed) { m.Volumes = make([]SurveyedVolume, MaxVolumes+1) }),
		"surveyed volume role":  volume(SurveyedVolume{Role: RoleSource}),
		"surveyed volume size":  volume(SurveyedVolume{Size: -1}),
		"surveyed volume name":  volume(SurveyedVolume{Name: "a\x1b[31m"}),
		"surveyed volume state": volume(SurveyedVolume{State: strings.Repeat("s", MaxState+1)}),
		"load nowhere":          &Load{0, 1, 1},
		"load both ways":        &Load{3, 1, 1},
		"load of no time":       &Load{LoadTo, 0, 1},
		"load for long":         &Load{LoadTo, MaxLoadMillis + 1, 1},
		"load of nothing":       &Load{LoadTo, 1, 0},
		"load of too much":      &Load{LoadTo, 1, MaxLoadBytes + 1},
		"loaded flags":          &Loaded{Flags: 2},
		"ballast of nothing":    &Ballast{},
		"ballast too heavy":     &Ballast{Payload: make([]byte, MaxBallast+1)},
	}
}

// TestSurveyedCounts: a count of volumes that are not there makes no room for them.
func TestSurveyedCounts(t *testing.T) {
	meta := appendMeta(nil, sample(TypeSurveyed))
	le.PutUint16(meta[34:], 1<<16-1)
	allocated := testing.AllocsPerRun(10, func() {
		if m, err := decodeMeta(header{kind: TypeSurveyed, meta: uint32(len(meta))}, meta); err == nil {
			t.Errorf("decoded to %+v", m)
		}
	})
	if allocated > 20 {
		t.Errorf("%v allocations for a meta that is refused", allocated)
	}
}
