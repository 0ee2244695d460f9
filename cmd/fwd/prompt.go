package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/term"
)

// maxSecret bounds what is read as an invite, passphrase or backup: 4 MiB, which a
// backup with its roster of at most 1 MiB stays under in base64.
const maxSecret = 4 << 20

// mayPrompt: a person is there to answer.
func (a *app) mayPrompt() bool {
	return !a.out.json && term.IsTerminal(int(a.stdin.Fd())) && term.IsTerminal(int(os.Stderr.Fd()))
}

// prompt asks for one line on the terminal.
func (a *app) prompt(ctx context.Context, question string) (string, error) {
	a.out.endProgress()
	fmt.Fprint(a.out.stderr, question)
	line, err := unless(ctx, func() (string, error) { return bufio.NewReader(a.stdin).ReadString('\n') })
	if err != nil {
		fmt.Fprintln(a.out.stderr)
		return "", noAnswer(ctx)
	}
	return strings.TrimSpace(line), nil
}

// promptHidden asks for a line that is not shown.
func (a *app) promptHidden(ctx context.Context, question string) (string, error) {
	fmt.Fprint(a.out.stderr, question)
	fd := int(a.stdin.Fd())
	shown, stateErr := term.GetState(fd)
	line, err := unless(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	fmt.Fprintln(a.out.stderr)
	if err != nil {
		if stateErr == nil {
			term.Restore(fd, shown) // ReadPassword does, but only once it ends
		}
		return "", noAnswer(ctx)
	}
	return string(line), nil
}

func noAnswer(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return usageError("", "no answer")
}

// readInput reads a secret from standard input, to its end.
func (a *app) readInput(ctx context.Context) (string, error) {
	b, err := unless(ctx, func() ([]byte, error) { return io.ReadAll(io.LimitReader(a.stdin, maxSecret)) })
	return string(b), err
}

// unless gives what read returns, unless ctx ends first. A terminal or pipe cannot be made to let go of its reader: that
// goroutine ends with the process.
func unless[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		got T
		err error
	}
	done := make(chan result, 1)
	go func() {
		got, err := read()
		done <- result{got, err}
	}()
	select {
	case r := <-done:
		return r.got, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// readSecret reads a file that holds what, an invite, passphrase or backup.
func readSecret(what, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", usageError("name a file that this user can read", "read %s file %s: %v", what, path, cause(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return "", usageError("name a file that this user can read", "read %s file %s: %v", what, path, cause(err))
	}
	return strings.TrimSpace(string(b)), nil
}

// cause is err without the path that the message has already.
func cause(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}
