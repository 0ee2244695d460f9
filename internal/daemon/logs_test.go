package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogFileIsBoundedAndItsLastLinesStay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fwd.log")
	b, err := openBounded(path, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	stderr, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0) // as the starter gives it to us
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	for i := range 500 {
		fmt.Fprintf(b, "line %d\n", i)
	}
	fmt.Fprintln(stderr, "a crash")
	now, _ := os.ReadFile(path)
	old, _ := os.ReadFile(path + ".1")
	if len(now) > 1000 || len(old) > 1000 || len(old) < 900 {
		t.Errorf("%d and %d bytes", len(now), len(old))
	}
	all := string(old) + string(now)
	if !strings.HasSuffix(all, "line 498\nline 499\na crash\n") || strings.Contains(all, "\x00") {
		t.Errorf("the end is %q", all[len(all)-60:])
	}
	for i := 499 - strings.Count(all, "line") + 1; i < 500; i++ {
		if !strings.Contains(all, fmt.Sprintf("line %d\n", i)) {
			t.Errorf("line %d is lost", i)
		}
	}
	// A file that was there goes on where it stood.
	again, err := openBounded(path, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	again.Write(bytes.Repeat([]byte("x"), 990))
	if now, _ = os.ReadFile(path); len(now) != 990 {
		t.Errorf("%d bytes", len(now))
	}
}

func TestATerminalGetsWarningsAndTheFileAll(t *testing.T) {
	t.Setenv("FWD_LOG", "")
	t.Setenv("FWD_LOG_FORMAT", "")
	for _, c := range []struct {
		to             Stderr
		env            string
		info, terminal bool // info on stderr; a file at all
		json           bool
	}{
		{Stderr{Terminal: true}, "", false, true, false},
		{Stderr{Terminal: true, Verbose: true}, "", true, true, false},
		{Stderr{Terminal: true}, "debug", true, true, false},
		{Stderr{}, "", true, false, false},
		{Stderr{Service: true}, "", true, false, true},
	} {
		t.Setenv("FWD_LOG", c.env)
		home := Home{State: t.TempDir()}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		was := os.Stderr
		os.Stderr = w
		log, done, err := openLog(home, logConfig{}, slog.LevelInfo, c.to)
		os.Stderr = was
		if err != nil {
			t.Fatal(err)
		}
		log.With("peer", "nas").Info("it happened")
		log.Warn("beware")
		w.Close()
		var told bytes.Buffer
		told.ReadFrom(r)
		r.Close()
		done()
		written, _ := os.ReadFile(home.Log())
		if got := strings.Contains(told.String(), "it happened"); got != c.info {
			t.Errorf("%+v: stderr has %q", c, told.String())
		}
		if !strings.Contains(told.String(), "beware") {
			t.Errorf("%+v: no warning in %q", c, told.String())
		}
		if got := strings.Contains(string(written), "it happened") && strings.Contains(string(written), "peer=nas"); got != c.terminal {
			t.Errorf("%+v: the file has %q", c, written)
		}
		if got := strings.HasPrefix(told.String(), "{"); got != c.json {
			t.Errorf("%+v: JSON is %v", c, got)
		}
	}
}
