//go:build linux

// Package fwdtest runs the real fwd on the hosts of a lab and judges what it carries.
//
//	relay := fwdtest.New(t, l.Public("relay", "7.0.0.10"))
//	up := relay.Start("relay")                     // a process that goes on; its JSON lines are events
//	code := up.Wait("invite").Invite
//	nas := fwdtest.New(t, l.Home("a", lab.PortRestricted).Host("nas"))
//	nas.Must("join", code)                         // a command that ends
//	data := fwdtest.ServePattern(t, nas.Host, "127.0.0.1:9000")
//	…
//	report, err := data.Transfer(conn, fwdtest.Load{Up: 8 << 20, Down: 8 << 20})
//
// Each peer has a home folder of its own. When a test fails, all that its processes said is in its log. When it
// ends, the peer's processes are interrupted, then killed, by their process IDs.
package fwdtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"fwd/itest/lab"
)

// Main is a TestMain for packages that run fwd: the lab's, and it removes the binary.
func Main(m *testing.M) {
	os.Exit(lab.Run(func() int {
		defer built.remove()
		defer builtShifted.remove()
		return m.Run()
	}))
}

// built is the binary of this test run, made when the first test asks for it.
var built theBinary

type theBinary struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// Binary is the path of fwd, built once per test run from this tree; FWD_BINARY names another one to test. It is
// built without the race detector, whether or not the tests have it: GOFLAGS=-race says otherwise.
func Binary(t testing.TB) string {
	t.Helper()
	built.once.Do(built.build)
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func (b *theBinary) build() {
	if b.path = os.Getenv("FWD_BINARY"); b.path != "" {
		return
	}
	if b.dir, b.err = os.MkdirTemp("", "fwd-bin-"); b.err != nil {
		return
	}
	b.path = filepath.Join(b.dir, "fwd")
	out, err := exec.Command("go", "build", "-o", b.path, "fwd/cmd/fwd").CombinedOutput()
	if err != nil {
		b.err = fmt.Errorf("build fwd: %w\n%s", err, out)
	}
}

func (b *theBinary) remove() {
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
}

// ClockEnv is by how much a [Shifted] fwd's clock is wrong, as Go writes durations.
const ClockEnv = "FWDTEST_CLOCK"

var builtShifted theBinary

// Shifted is the path of a fwd that takes the time of day to be another one if [ClockEnv] says so, in all of the process:
// its TLS and QUIC, too. It is built with a standard library whose time.Now is changed; fwd itself has no door for that.
func Shifted(t testing.TB) string {
	t.Helper()
	b := &builtShifted
	b.once.Do(func() { b.err = b.buildShifted() })
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

const shift = `package time

import "syscall"

// shift is by how many seconds this process's clock is wrong.
var shift = func() int64 {
	word, _ := syscall.Getenv("` + ClockEnv + `")
	d, _ := ParseDuration(word)
	return int64(d / Second)
}()
`

func (b *theBinary) buildShifted() (err error) {
	if b.dir, err = os.MkdirTemp("", "fwd-bin-"); err != nil {
		return err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find Go's sources: %w", err)
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return err
	}
	const reads = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(source), reads) != 1 {
		return errors.New("this Go's time.Now reads the clock in another way than is known here")
	}
	replace := map[string]string{}
	for name, text := range map[string]string{
		"time.go":      strings.Replace(string(source), reads, reads+"\tsec += shift\n", 1),
		"fwd_shift.go": shift,
	} {
		path := filepath.Join(b.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		replace[filepath.Join(std, name)] = path
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	file := filepath.Join(b.dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		return err
	}
	b.path = filepath.Join(b.dir, "fwd")
	if out, err := exec.Command("go", "build", "-overlay", file, "-o", b.path, "fwd/cmd/fwd").CombinedOutput(); err != nil {
		return fmt.Errorf("build fwd with another clock: %w\n%s", err, out)
	}
	return nil
}
