package main

import (
	"bufio"
	"fmt"
	"io"
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
func (a *app) prompt(question string) (string, error) {
	a.out.endProgress()
	fmt.Fprint(a.out.stderr, question)
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil {
		fmt.Fprintln(a.out.stderr)
		return "", usageError("", "no answer")
	}
	return strings.TrimSpace(line), nil
}

// promptHidden asks for a line that is not shown.
func (a *app) promptHidden(question string) (string, error) {
	fmt.Fprint(a.out.stderr, question)
	line, err := term.ReadPassword(int(a.stdin.Fd()))
	fmt.Fprintln(a.out.stderr)
	if err != nil {
		return "", usageError("", "no answer")
	}
	return string(line), nil
}

// readSecret reads a file that holds an invite, passphrase or backup.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", usageError("name a file that this user can read", "%v", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return "", usageError("name a file that this user can read", "%v", err)
	}
	return strings.TrimSpace(string(b)), nil
}
