package daemon

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Root is the folder of the module that the working directory belongs to.
func Root(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("where is the module? %w", err)
	}
	return filepath.Clean(strings.TrimSpace(string(out))), nil
}

// Build makes the product's binary in dir. Flags are those of go build.
func Build(ctx context.Context, root, dir string, flags ...string) (binary string, err error) {
	binary = filepath.Join(dir, "blkmirror")
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"build"}, flags...), "-o", binary, "./cli/blkmirror")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return binary, nil
}
