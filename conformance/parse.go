package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Scenario is one file.
type Scenario struct {
	Path, Name string
	Needs      []string      // capabilities without which it says nothing
	Optional   []string      // capabilities without which some of its steps are left out
	Mirrors    int           // 1 or 2
	Size       int64         // of the volume
	Longest    int64         // pages of the longest request of the writer
	Pause      time.Duration // of each of the writer's workers after a request
	Limit      time.Duration // of each wait
	Steps      []Step
}

// Step is one line. A repeat has a body.
type Step struct {
	Line int
	Text string
	verb *verb
	args []any
	body []Step
}

// SyntaxError says where a file is no scenario.
type SyntaxError struct {
	Path         string
	Line, Column int
	Text         string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.Path, e.Line, e.Column, e.Text)
}

// token is a word and where it begins, counted in characters from 1.
type token struct {
	text   string
	column int
}

// maxFile bounds a scenario's file; a longer one is some other file.
const maxFile = 1 << 20

// Load reads scenarios: files, and of directories all files that end in .scenario, by name.
func Load(paths ...string) ([]*Scenario, error) {
	var files []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, path)
			continue
		}
		found, err := filepath.Glob(filepath.Join(path, "*.scenario"))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("%s has no file that ends in .scenario", path)
		}
		files = append(files, found...)
	}
	var all []*Scenario
	for _, path := range files {
		info, err := os.Stat(path)
		if err == nil && info.Size() > maxFile {
			err = fmt.Errorf("%s is too long for a scenario", path)
		}
		if err != nil {
			return nil, err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		s, err := Parse(path, string(text))
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// parser reads one file.
type parser struct {
	s     *Scenario
	line  int
	seen  map[string]bool // headers
	open  []*Step         // repeats that wait for their end
	steps []*[]Step       // where steps go, innermost last
}

// Parse reads the text of a file.
func Parse(path, text string) (*Scenario, error) {
	s := &Scenario{Path: path, Mirrors: 1, Size: 64 << 20, Longest: 32, Pause: time.Millisecond, Limit: 2 * time.Minute}
	p := &parser{s: s, seen: map[string]bool{}, steps: []*[]Step{&s.Steps}}
	for line := range strings.Lines(text) {
		p.line++
		if !utf8.ValidString(line) {
			return nil, p.wrong(1, "this is no text in UTF-8")
		}
		tokens := split(line)
		if len(tokens) == 0 {
			continue
		}
		if err := p.take(tokens, strings.TrimSpace(line)); err != nil {
			return nil, err
		}
	}
	switch {
	case len(p.open) > 0:
		p.line = p.open[len(p.open)-1].Line
		return nil, p.wrong(1, "this repeat has no end")
	case s.Name == "":
		return nil, p.wrong(1, "the file has no name: line")
	case !expects(s.Steps):
		return nil, p.wrong(1, "the file expects nothing: no line begins with expect")
	}
	return s, nil
}

// split cuts a line into words, up to a comment.
func split(line string) []token {
	var tokens []token
	column, begin := 0, 0
	var word strings.Builder
	flush := func() {
		if word.Len() > 0 {
			tokens = append(tokens, token{word.String(), begin})
			word.Reset()
		}
	}
	for _, r := range line {
		column++
		switch {
		case r == '#':
			flush()
			return tokens
		case r == ' ' || r == '\t' || r == '\r' || r == '\n':
			flush()
		default:
			if word.Len() == 0 {
				begin = column
			}
			word.WriteRune(r)
		}
	}
	flush()
	return tokens
}

func (p *parser) wrong(column int, format string, args ...any) error {
	return &SyntaxError{p.s.Path, p.line, column, fmt.Sprintf(format, args...)}
}

// take reads one line that is not empty.
func (p *parser) take(tokens []token, text string) error {
	if strings.HasSuffix(tokens[0].text, ":") {
		if len(p.s.Steps)+len(p.open) > 0 {
			return p.wrong(tokens[0].column, "%s stands behind a step; it belongs to the head of the file", tokens[0].text)
		}
		return p.header(tokens)
	}
	if len(tokens) == 1 && tokens[0].text == "end" {
		return p.end(tokens[0].column)
	}
	v, args, err := p.match(tokens)
	if err != nil {
		return err
	}
	text, _, _ = strings.Cut(text, "#")
	step := Step{Line: p.line, Text: strings.Join(strings.Fields(text), " "), verb: v, args: args}
	if need := v.capability; need != "" && !slices.Contains(p.s.Needs, need) && !slices.Contains(p.s.Optional, need) {
		return p.wrong(tokens[0].column, "not every tool can do this: the head must name %q in needs: or optional:", need)
	}
	if v.do == nil { // a repeat
		p.open = append(p.open, &step)
		p.steps = append(p.steps, &step.body)
		return nil
	}
	p.add(step)
	return nil
}

func (p *parser) add(s Step) {
	to := p.steps[len(p.steps)-1]
	*to = append(*to, s)
}

func (p *parser) end(column int) error {
	if len(p.open) == 0 {
		return p.wrong(column, "there is no repeat to end")
	}
	done := p.open[len(p.open)-1]
	p.open, p.steps = p.open[:len(p.open)-1], p.steps[:len(p.steps)-1]
	p.add(*done)
	return nil
}

// header reads a line of the head.
func (p *parser) header(tokens []token) error {
	key := strings.TrimSuffix(tokens[0].text, ":")
	if p.seen[key] {
		return p.wrong(tokens[0].column, "%s: stands here twice", key)
	}
	p.seen[key] = true
	if len(tokens) == 1 {
		return p.wrong(tokens[0].column, "%s: has no value", key)
	}
	values := tokens[1:]
	var err error
	switch key {
	case "name":
		words := make([]string, len(values))
		for i, v := range values {
			words[i] = v.text
		}
		p.s.Name = strings.Join(words, " ")
		return nil
	case "needs":
		p.s.Needs, err = p.capabilities(values)
		return err
	case "optional":
		p.s.Optional, err = p.capabilities(values)
		return err
	}
	if len(values) > 1 {
		return p.wrong(values[1].column, "%s: has one value", key)
	}
	return p.number(key, tokens[0], values[0])
}

// number reads a header that has a number as its value.
func (p *parser) number(key string, at, value token) error {
	kind, ok := map[string]string{"mirrors": "COUNT", "size": "SIZE", "longest": "COUNT", "pause": "TIME", "limit": "TIME"}[key]
	if !ok {
		return p.wrong(at.column, "%q is no header; there are name, needs, optional, mirrors, size, longest, pause and limit", key)
	}
	v, why := p.value(kind, value.text)
	if why != "" {
		return p.wrong(value.column, "%s", why)
	}
	switch key {
	case "mirrors":
		p.s.Mirrors = v.(int)
		if p.s.Mirrors > 2 {
			return p.wrong(value.column, "there are one or two mirrors")
		}
		if p.s.Mirrors == 2 && !slices.Contains(p.s.Needs, "mirrors") {
			return p.wrong(value.column, "not every tool has two mirrors: a line above must say needs: mirrors")
		}
	case "size":
		p.s.Size = v.(int64)
		if p.s.Size%(1<<20) != 0 || p.s.Size > 16<<30 {
			return p.wrong(value.column, "the size is a number of whole MiB, up to 16GiB")
		}
	case "longest":
		p.s.Longest = int64(v.(int))
		if p.s.Longest > 256 {
			return p.wrong(value.column, "the longest request has at most 256 pages")
		}
	case "pause":
		p.s.Pause = v.(time.Duration)
	case "limit":
		p.s.Limit = v.(time.Duration)
	}
	return nil
}

func (p *parser) capabilities(values []token) ([]string, error) {
	var out []string
	for _, v := range values {
		if !slices.Contains(Capabilities, v.text) {
			return nil, p.wrong(v.column, "%q is no capability; there are %s", v.text, strings.Join(Capabilities, ", "))
		}
		out = append(out, v.text)
	}
	return out, nil
}

// match finds the step that a line is. Where it is none, the error is about the word that fits the step
// that fits furthest.
func (p *parser) match(tokens []token) (*verb, []any, error) {
	furthest, why := -1, ""
	for i := range verbs {
		v := &verbs[i]
		args, n, reason := p.fit(v, tokens)
		if reason == "" {
			return v, args, nil
		}
		if n > furthest {
			furthest, why = n, reason
		} else if n == furthest && !strings.Contains(why, reason) {
			why += ", or " + reason
		}
	}
	if furthest == 0 {
		return nil, nil, p.wrong(tokens[0].column, "%q begins no step; there are %s", tokens[0].text, strings.Join(firstWords(), ", "))
	}
	if furthest >= len(tokens) {
		last := tokens[len(tokens)-1]
		return nil, nil, p.wrong(last.column+utf8.RuneCountInString(last.text), "the line ends too early: %s", why)
	}
	return nil, nil, p.wrong(tokens[furthest].column, "%q does not stand here: %s", tokens[furthest].text, why)
}

// fit holds a line against one step. n words fit.
func (p *parser) fit(v *verb, tokens []token) (args []any, n int, why string) {
	words := strings.Fields(v.form)
	for i, word := range words {
		many := strings.HasSuffix(word, "…")
		word = strings.TrimSuffix(word, "…")
		if i >= len(tokens) {
			return nil, i, "here comes " + told(word)
		}
		if strings.ToUpper(word) != word {
			if tokens[i].text != word {
				return nil, i, "here comes " + told(word)
			}
			continue
		}
		if many { // the rest of the line, with "and" or "or" between
			for k := i; ; k += 2 {
				if k >= len(tokens) {
					return nil, k, "here comes " + told(word)
				}
				value, why := p.value(word, tokens[k].text)
				if why != "" {
					return nil, k, why
				}
				args = append(args, value)
				if k+1 == len(tokens) {
					return args, k + 1, ""
				}
				if next := tokens[k+1].text; next != "and" && next != "or" {
					return nil, k + 1, "here comes the end of the line, or one more"
				}
			}
		}
		value, why := p.value(word, tokens[i].text)
		if why != "" {
			return nil, i, why
		}
		args = append(args, value)
	}
	if len(tokens) > len(words) {
		return nil, len(words), "here comes the end of the line"
	}
	return args, len(words), ""
}

// value reads a word of some kind, or says why it is none.
func (p *parser) value(kind, text string) (any, string) {
	switch kind {
	case "NODE":
		return text, among(text, p.nodes())
	case "MIRROR":
		return text, among(text, p.nodes()[1:])
	case "LINK":
		return "mirror" + strings.TrimPrefix(text, "link"), among(text, []string{"link", "link2"}[:p.s.Mirrors])
	case "STATE":
		return text, among(text, States)
	case "CLAIM":
		return text, among(text, claims)
	case "TIME":
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return nil, "here comes a time like 300ms or 2s"
		}
		return d, ""
	case "SIZE":
		number, shift := text, 0
		for i, unit := range []string{"KiB", "MiB", "GiB"} {
			if rest, ok := strings.CutSuffix(text, unit); ok {
				number, shift = rest, 10*(i+1)
			}
		}
		n, err := strconv.ParseUint(number, 10, 24)
		if err != nil || n == 0 || shift == 0 {
			return nil, "here comes a size like 64KiB or 2MiB"
		}
		return int64(n) << shift, ""
	}
	n, err := strconv.ParseUint(text, 10, 20)
	if err != nil || n == 0 {
		return nil, "here comes a number from 1 to 1048575"
	}
	return int(n), ""
}

func (p *parser) nodes() []string { return nodeNames[:1+p.s.Mirrors] }

func among(text string, words []string) string {
	if slices.Contains(words, text) {
		return ""
	}
	return "here comes " + strings.Join(words, " or ")
}

// expects tells whether a scenario can fail by its outcome.
func expects(steps []Step) bool {
	return slices.ContainsFunc(steps, func(s Step) bool { return strings.HasPrefix(s.Text, "expect ") || expects(s.body) })
}
