// Testsum reads what 'go test -json' prints, shows what a person wants to see of it, and adds the outcomes
// to a file, so that several runs can be summed up at the end:
//
//	go test -json ./... | testsum -to DIR/results    exits 1 where anything failed
//	testsum -step NAME -outcome pass -to DIR/results  counts a step that is no Go test
//	testsum -report DIR/results                       the summary; exits 1 where anything failed
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	to := flag.String("to", "", "add the outcomes to `FILE`")
	verbose := flag.Bool("v", false, "show also what tests log that pass")
	step := flag.String("step", "", "count the step `NAME` in place of reading tests")
	outcome := flag.String("outcome", "", "of the step: pass, fail or skip")
	reason := flag.String("reason", "", "of a skipped or failed step")
	report := flag.String("report", "", "sum up `FILE`")
	flag.Parse()

	ok, err := true, error(nil)
	switch {
	case *report != "":
		ok, err = withFile(*report, func(f io.Reader) (bool, error) { return summarise(f, os.Stdout) })
	case *step != "":
		err = save(*to, []result{{Name: *step, Outcome: *outcome, Reason: *reason}})
		ok = *outcome != "fail"
	default:
		var results []result
		if results, err = read(os.Stdin, os.Stdout, *verbose); err == nil {
			err = save(*to, results)
		}
		for _, r := range results {
			ok = ok && r.Outcome != "fail"
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func withFile(path string, use func(io.Reader) (bool, error)) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return use(f)
}
