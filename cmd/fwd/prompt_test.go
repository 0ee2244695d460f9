package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A read from a pipe or terminal cannot be called off, the command can.
func TestASignalEndsWaitingForInput(t *testing.T) {
	t.Setenv("FWD_HOME", t.TempDir())
	nothing, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer nothing.Close()
	for _, words := range [][]string{{"join"}, {"owner", "import"}} {
		stdin, open, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(&interrupted{syscall.SIGINT})
		ended := make(chan int, 1)
		go func() { ended <- run(ctx, words, stdin, nothing, nothing) }()
		select {
		case status := <-ended:
			if status != 130 {
				t.Errorf("%v: exit %d, want 130", words, status)
			}
		case <-time.After(time.Minute):
			t.Errorf("%v waits on", words)
		}
		open.Close()
		stdin.Close()
	}
}

// Which of several files could not be read, and what it was read for.
func TestASecretThatCannotBeReadIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none")
	_, err := readSecret("passphrase", file)
	if want := "read passphrase file " + file + ": "; err == nil || !strings.HasPrefix(err.Error(), want) || strings.Count(err.Error(), file) != 1 {
		t.Errorf("got %v, want %s…", err, want)
	}
}
