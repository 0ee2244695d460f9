//go:build linux

package fwdtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fwd/itest/lab"
)

// Limit is how long anything may take that should happen. It is generous: a test that needs it has failed.
const Limit = 3 * time.Minute

// endLimit is how long a process may take to end after it was asked to.
const endLimit = 15 * time.Second

// Peer is one fwd on a host: a home folder and the processes that use it.
type Peer struct {
	Host *lab.Host
	Home string   // its FWD_HOME
	Env  []string // further variables, "NAME=value"; set before the first command

	// Clock is by how much its clock is wrong; a daemon has it from its start on.
	Clock time.Duration

	t     testing.TB
	procs []*Process
}

// New makes a peer without a network.
func New(t testing.TB, host *lab.Host) *Peer {
	t.Helper()
	Binary(t)
	// Not t.TempDir: the control socket lives in it, and a socket's path has to be short.
	home, err := os.MkdirTemp("", "fwd-")
	if err != nil {
		t.Fatal(err)
	}
	p := &Peer{Host: host, Home: home, t: t}
	t.Cleanup(p.end)
	return p
}

// Result is what a command said.
type Result struct {
	Stdout, Stderr string
	Code           int // exit status; -1: a signal, or it took longer than Limit
}

// Run runs fwd to its end.
func (p *Peer) Run(args ...string) Result {
	p.t.Helper()
	return p.RunWith("", args...)
}

// RunWith runs fwd to its end with that on its standard input.
func (p *Peer) RunWith(stdin string, args ...string) Result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := p.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	// A daemon that the command leaves behind must not hold its output.
	cmd.WaitDelay = endLimit
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("%s: fwd %s: %v", p.Host.Name(), strings.Join(args, " "), err)
	}
	_ = cmd.Wait() // its failure is its exit code
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Must runs fwd to its end, which must be a success, and returns its answer.
func (p *Peer) Must(args ...string) string {
	p.t.Helper()
	r := p.Run(args...)
	if r.Code != 0 {
		p.t.Fatalf("%s: fwd %s: exit %d\n%s%s", p.Host.Name(), strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Invite has the peer make an invite and returns the code.
func (p *Peer) Invite(flags ...string) string {
	p.t.Helper()
	return p.Must(append([]string{"invite"}, flags...)...)
}

// Join puts the peer on the network of an invite under a name.
func (p *Peer) Join(code, name string) {
	p.t.Helper()
	if r := p.RunWith(code, "join", "--as", name); r.Code != 0 {
		p.t.Fatalf("%s: fwd join: exit %d\n%s%s", p.Host.Name(), r.Code, r.Stdout, r.Stderr)
	}
}

// Status is the peer's status.
func (p *Peer) Status() Status {
	p.t.Helper()
	var s Status
	if answer := p.Must("status", "--json"); json.Unmarshal([]byte(answer), &s) != nil {
		p.t.Fatalf("%s: not a status: %s", p.Host.Name(), answer)
	}
	return s
}

// WaitStatus asks until the status is as wanted, and returns it.
func (p *Peer) WaitStatus(what string, wanted func(Status) bool) Status {
	p.t.Helper()
	for deadline := time.Now().Add(Limit); ; time.Sleep(50 * time.Millisecond) {
		s := p.Status()
		if wanted(s) {
			return s
		}
		if time.Now().After(deadline) {
			text, _ := json.MarshalIndent(s, "", "  ")
			p.t.Fatalf("%s: in %v never: %s; the status is\n%s", p.Host.Name(), Limit, what, text)
		}
	}
}

// WaitPath asks until the forward of a service goes by a path of that kind ("direct", "relay").
func (p *Peer) WaitPath(service, kind string) Path {
	p.t.Helper()
	var path Path
	p.WaitStatus(fmt.Sprintf("%q by a %s path", service, kind), func(s Status) bool {
		for _, f := range s.Forwards {
			if f.Service == service && f.Path != nil && f.Path.Kind == kind {
				path = *f.Path
				return true
			}
		}
		return false
	})
	return path
}

func (p *Peer) command(ctx context.Context, args ...string) *lab.Cmd {
	binary := Binary(p.t)
	if p.Clock != 0 {
		binary = Shifted(p.t)
	}
	cmd := p.Host.Command(ctx, binary, args...)
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "FWD_LOG=") || !strings.HasPrefix(v, "FWD_") && !strings.HasPrefix(v, "XDG_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "FWD_HOME="+p.Home, "HOME="+p.Home, "NO_COLOR=1")
	cmd.Env = append(cmd.Env, p.Env...)
	if p.Clock != 0 {
		cmd.Env = append(cmd.Env, ClockEnv+"="+p.Clock.String())
	}
	cmd.Dir = p.Home
	return cmd
}

// Log is what the peer's background daemon has written.
func (p *Peer) Log() string {
	log, _ := os.ReadFile(filepath.Join(p.Home, "fwd.log"))
	return string(log)
}

// Stacks ends the background daemon and gives its goroutines, as its last words, that are in one of these functions.
func (p *Peer) Stacks(in ...string) string {
	p.t.Helper()
	if err := syscall.Kill(p.Status().PID, syscall.SIGQUIT); err != nil {
		p.t.Errorf("%s: %v", p.Host.Name(), err)
	}
	for deadline := time.Now().Add(endLimit); len(p.Pids()) > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond) // nor does one of what it has written
	}
	_, dump, _ := strings.Cut(p.Log(), "SIGQUIT")
	stacks := strings.Split(dump, "\n\n")
	return strings.Join(slices.DeleteFunc(stacks, func(s string) bool {
		return !slices.ContainsFunc(in, func(f string) bool { return strings.Contains(s, f) })
	}), "\n\n")
}

// Pids are the processes of this peer that run now: those on its host with its home.
func (p *Peer) Pids() []int {
	want := []byte("FWD_HOME=" + p.Home)
	return slices.DeleteFunc(p.Host.Processes(), func(pid int) bool {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		return err != nil || !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, want) })
	})
}

// end ends what runs, tells what was said if the test failed, and removes the home.
func (p *Peer) end() {
	for _, proc := range slices.Backward(p.procs) {
		proc.Interrupt()
	}
	if len(p.Pids()) > 0 {
		p.Run("stop")
	}
	for deadline := time.Now().Add(endLimit); len(p.Pids()) > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond) // no event tells of the end of somebody else's child
	}
	for _, pid := range p.Pids() {
		p.t.Errorf("%s: process %d did not end in %v; killed", p.Host.Name(), pid, endLimit)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if p.t.Failed() {
		for _, proc := range p.procs {
			p.t.Logf("%s: fwd %s\n%s", p.Host.Name(), strings.Join(proc.args, " "), proc.Said())
		}
		if log := p.Log(); log != "" {
			p.t.Logf("%s: log of its background daemon\n%s", p.Host.Name(), log)
		}
	}
	os.RemoveAll(p.Home)
}
