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
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"fwd/itest/lab"
)

// Main is a TestMain for packages that run fwd: the lab's, and it removes the binary.
func Main(m *testing.M) {
	os.Exit(lab.Run(func() int {
		defer built.remove()
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
