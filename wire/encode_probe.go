package wire

// The metas of probes, as those in encode.go, and the rules that they keep.

// Sizes of metas, and of the part of a meta that does not vary.
const (
	surveySize     = 8
	surveyedFixed  = 40
	surveyedVolume = 16
	loadSize       = 16
	loadedSize     = 32
	ballastSize    = 8
)

// Survey
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|             from              |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendSurvey(b []byte, m *Survey) []byte {
	return append(le.AppendUint32(b, m.From), 0, 0, 0, 0)
}

func decodeSurvey(r *reader) *Survey {
	m := &Survey{From: r.u32()}
	r.reserved(4)
	return m
}

// Surveyed
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             clock                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          receive max                          |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                           send max                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          hash speed                           |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|     cpus      |    volumes    | more  |version|congest|   0   |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|         version, congestion ..., then each volume:            |
//	+---------------------------------------------------------------+
//
// The fields version and congest(ion) are lengths. A volume is
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             size                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| role  | name  | state |               reserved                |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                        name, state ...                        |
//	+---------------------------------------------------------------+
//
// where name and state in the fixed part are lengths.
func appendSurveyed(b []byte, m *Surveyed) []byte {
	b = le.AppendUint64(b, uint64(m.Clock))
	b = le.AppendUint64(b, uint64(m.ReceiveMax))
	b = le.AppendUint64(b, uint64(m.SendMax))
	b = le.AppendUint64(b, uint64(m.HashSpeed))
	b = le.AppendUint16(b, m.CPUs)
	b = le.AppendUint16(b, uint16(len(m.Volumes)))
	b = append(b, bit(m.More), byte(len(m.Version)), byte(len(m.Congestion)), 0)
	b = append(b, m.Version...)
	b = append(b, m.Congestion...)
	for i := range m.Volumes {
		v := &m.Volumes[i]
		b = le.AppendUint64(b, uint64(v.Size))
		b = append(b, byte(v.Role), byte(len(v.Name)), byte(len(v.State)), 0, 0, 0, 0, 0)
		b = append(b, v.Name...)
		b = append(b, v.State...)
	}
	return b
}

func decodeSurveyed(r *reader) *Surveyed {
	m := &Surveyed{Clock: r.i64(), ReceiveMax: r.i64(), SendMax: r.i64(), HashSpeed: r.i64(), CPUs: r.u16()}
	volumes := int(r.u16())
	m.More = r.bit("more")
	version, congestion := int(r.u8()), int(r.u8())
	r.reserved(1)
	m.Version, m.Congestion = r.str(version), r.str(congestion)
	if volumes*surveyedVolume > len(r.rest) { // nothing is allocated for what is not there
		r.fail("%d bytes for %d volumes", len(r.rest), volumes)
	}
	for i := 0; i < volumes && r.err == nil; i++ {
		v := SurveyedVolume{Size: r.i64(), Role: Role(r.u8())}
		name, state := int(r.u8()), int(r.u8())
		r.reserved(5)
		v.Name, v.State = r.str(name), r.str(state)
		m.Volumes = append(m.Volumes, v)
	}
	return m
}

func (m *Surveyed) check() error {
	if m.ReceiveMax < 0 || m.SendMax < 0 || m.HashSpeed < 0 {
		return broken("Surveyed with limits of %d and %d bytes, hash speed %d", m.ReceiveMax, m.SendMax, m.HashSpeed)
	}
	if len(m.Volumes) > MaxVolumes {
		return broken("%d volumes in Surveyed, limit %d", len(m.Volumes), MaxVolumes)
	}
	if m.More && len(m.Volumes) == 0 {
		return broken("Surveyed of no volume, with more behind it")
	}
	if err := checkString("version", m.Version, MaxName); err != nil {
		return err
	}
	if err := checkString("congestion control", m.Congestion, MaxState); err != nil {
		return err
	}
	for i := range m.Volumes {
		v := &m.Volumes[i]
		if v.Size < 0 || v.Role != 0 && v.Role != RolePrimary && v.Role != RoleMirror {
			return broken("volume of %d bytes in role %d in Surveyed", v.Size, v.Role)
		}
		if err := checkString("name of a volume", v.Name, MaxName); err != nil {
			return err
		}
		if err := checkString("state of a volume", v.State, MaxState); err != nil {
			return err
		}
	}
	return nil
}

// Load
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| direct|       reserved        |            millis             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             bytes                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendLoad(b []byte, m *Load) []byte {
	b = append(b, byte(m.Direction), 0, 0, 0)
	b = le.AppendUint32(b, m.Millis)
	return le.AppendUint64(b, m.Bytes)
}

func decodeLoad(r *reader) *Load {
	m := &Load{Direction: Direction(r.u8())}
	r.reserved(3)
	m.Millis, m.Bytes = r.u32(), r.u64()
	return m
}

func (m *Load) check() error {
	switch {
	case m.Direction != LoadTo && m.Direction != LoadFrom:
		return broken("unknown direction %d of a Load", m.Direction)
	case m.Millis < 1 || m.Millis > MaxLoadMillis:
		return broken("Load of %d ms, limit %d", m.Millis, MaxLoadMillis)
	case m.Bytes < 1 || m.Bytes > MaxLoadBytes:
		return broken("Load of %d bytes, limit %d", m.Bytes, int64(MaxLoadBytes))
	}
	return nil
}

// Loaded
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             bytes                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             nanos                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                            resent                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|             flags             |           reserved            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendLoaded(b []byte, m *Loaded) []byte {
	b = le.AppendUint64(b, m.Bytes)
	b = le.AppendUint64(b, m.Nanos)
	b = le.AppendUint64(b, m.Resent)
	b = le.AppendUint32(b, uint32(m.Flags))
	return append(b, 0, 0, 0, 0)
}

func decodeLoaded(r *reader) *Loaded {
	m := &Loaded{Bytes: r.u64(), Nanos: r.u64(), Resent: r.u64(), Flags: LoadedFlags(r.u32())}
	r.reserved(4)
	return m
}

// Ballast. The length of its payload is in the frame's header.
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                              seq                              |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendBallast(b []byte, m *Ballast) []byte { return le.AppendUint64(b, m.Seq) }

func (m *Ballast) check() error {
	if m.PayloadLength < 1 || m.PayloadLength > MaxBallast {
		return broken("Ballast of %d bytes, limit %d", m.PayloadLength, MaxBallast)
	}
	return nil
}

// checkProbe is check for the messages of probes.
func checkProbe(m Message) error {
	switch m := m.(type) {
	case *Surveyed:
		return m.check()
	case *Load:
		return m.check()
	case *Loaded:
		return checkFlags("Loaded", uint32(m.Flags), uint32(LoadedLast))
	case *Ballast:
		return m.check()
	case *Survey:
		return nil
	}
	return broken("message of type %T", m)
}

// appendProbe is appendMeta for them.
func appendProbe(b []byte, m Message) ([]byte, bool) {
	switch m := m.(type) {
	case *Survey:
		return appendSurvey(b, m), true
	case *Surveyed:
		return appendSurveyed(b, m), true
	case *Load:
		return appendLoad(b, m), true
	case *Loaded:
		return appendLoaded(b, m), true
	case *Ballast:
		return appendBallast(b, m), true
	}
	return b, false
}

// decodeProbe is decodeFields for them; nil: it is none of them.
func decodeProbe(h header, r *reader) Message {
	switch h.kind {
	case TypeSurvey:
		return decodeSurvey(r)
	case TypeSurveyed:
		return decodeSurveyed(r)
	case TypeLoad:
		return decodeLoad(r)
	case TypeLoaded:
		return decodeLoaded(r)
	case TypeBallast:
		return &Ballast{Seq: r.u64(), PayloadLength: int(h.payload)}
	}
	return nil
}
