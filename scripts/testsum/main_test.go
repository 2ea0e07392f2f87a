package main

import (
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"testing"
)

const events = `# a line of the compiler
{"Action":"run","Package":"a","Test":"TestGood"}
{"Action":"output","Package":"a","Test":"TestGood","Output":"fine\n"}
{"Action":"pass","Package":"a","Test":"TestGood"}
{"Action":"run","Package":"a","Test":"TestParent"}
{"Action":"run","Package":"a","Test":"TestParent/one"}
{"Action":"pass","Package":"a","Test":"TestParent/one"}
{"Action":"run","Package":"a","Test":"TestParent/two"}
{"Action":"output","Package":"a","Test":"TestParent/two","Output":"    x_test.go:3: wrong\n"}
{"Action":"fail","Package":"a","Test":"TestParent/two"}
{"Action":"fail","Package":"a","Test":"TestParent"}
{"Action":"run","Package":"a","Test":"TestAway"}
{"Action":"output","Package":"a","Test":"TestAway","Output":"    x_test.go:9: needs root: no\n"}
{"Action":"output","Package":"a","Test":"TestAway","Output":"--- SKIP: TestAway (0.00s)\n"}
{"Action":"skip","Package":"a","Test":"TestAway"}
{"Action":"fail","Package":"a","Elapsed":1}
{"ImportPath":"b [b.test]","Action":"build-output","Output":"b/x.go:1: syntax error\n"}
{"Action":"fail","Package":"b","FailedBuild":"b [b.test]"}
{"Action":"run","Package":"c","Test":"TestDies"}
{"Action":"output","Package":"c","Test":"TestDies","Output":"panic: oh\n"}
{"Action":"fail","Package":"c"}
{"Action":"skip","Package":"d"}
`

func TestSummary(t *testing.T) {
	var shown bytes.Buffer
	results, err := read(strings.NewReader(events), &shown, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# a line of the compiler", "x_test.go:3: wrong", "b/x.go:1: syntax error", "panic: oh"} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("not shown: %q", want)
		}
	}
	if strings.Contains(shown.String(), "fine") {
		t.Error("shows what passed")
	}
	path := filepath.Join(t.TempDir(), "results")
	if err := save(path, results); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ok, err := withFile(path, func(f io.Reader) (bool, error) { return summarise(f, &out) })
	if ok || err != nil {
		t.Errorf("summarise: %v, %v", ok, err)
	}
	const want = `
Skipped:
  a.TestAway: needs root: no

Failed:
  a.TestParent/two
  b: the package as a whole
  c: the package as a whole

2 passed, 3 failed, 1 skipped
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestNothingIsNoSuccess(t *testing.T) {
	if ok, err := summarise(strings.NewReader(""), new(bytes.Buffer)); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}
