package nftables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
)

// run has nft make a change, whole or not at all. nft dies with us: what a successor writes must stay. It gets its input
// when its changes are kept out of Watch.
func (d *Dataplane) run(ctx context.Context, change []byte) error {
	cmd := exec.CommandContext(ctx, d.nft, "-f", "-")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("run nft: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run nft: %w", err)
	}
	err = d.changes.Mute(cmd.Process.Pid)
	defer func() { _ = d.changes.Mute(0) }() // at worst the next one's changes are missed until it is muted itself
	if err == nil {
		_, _ = stdin.Write(change) // it fails if nft ends early, and then Wait says why
	}
	if err := errors.Join(err, stdin.Close(), cmd.Wait()); err != nil {
		return fmt.Errorf("nft -f: %w: %s", err, complaint(stderr.String()))
	}
	return nil
}

var (
	seed  = regexp.MustCompile(`seed 0x[0-9a-f]+`)
	caret = regexp.MustCompile(`^[\s^~]*$`)
)

// complaint is the first thing that nft says, with the line that it quotes. The hash seed is a secret and does not get out.
func complaint(stderr string) string {
	const length = 1000 // of a line with many elements
	var said []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if caret.MatchString(line) {
			break
		}
		said = append(said, line[:min(len(line), length)])
	}
	return seed.ReplaceAllString(strings.Join(said, ": "), "seed …")
}
