// Command blkmirror keeps a second copy of a Linux disk on another machine.
package main

import (
	"context"
	"os"

	"github.com/blkmirror/blkmirror/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
