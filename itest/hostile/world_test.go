//go:build linux

// Package hostile attacks the real fwd with libp2p clients of its own that do not play by the rules. Each test says
// what is refused, what the attack costs (memory and descriptors of the process attacked), and that the members'
// sessions, and new ones, go on meanwhile. docs/access.md names these tests row by row.
package hostile

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fwd/itest/fwdtest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "10") // they wait more than they work
	fwdtest.Main(m)
}

// patience is how long anything may take that should happen.
const patience = 60 * time.Second

// What one attack may cost the process attacked, beyond what it had, and how long a member's byte may take meanwhile.
// Generous, for the machine is shared; without bounds the attacks take gigabytes, thousands, and for ever.
const (
	mostMemory      = 192 << 20
	mostDescriptors = 800
	mostStall       = 15 * time.Second
)

// machine is one fwd: a home and its processes.
type machine struct {
	t    *testing.T
	home string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	home, err := os.MkdirTemp("", "fwd-")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t, home}
	t.Cleanup(func() {
		m.command("stop").Run()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(home, "fwd.log"))
			t.Logf("%s\n%s", home, log[max(0, len(log)-4000):])
		}
		os.RemoveAll(home)
	})
	return m
}

func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(fwdtest.Binary(m.t), args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FWD_") && !strings.HasPrefix(v, "XDG_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "FWD_HOME="+m.home, "HOME="+m.home, "NO_COLOR=1")
	cmd.Dir = m.home
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run is a command that ends; its output and exit status.
func (m *machine) run(args ...string) (stdout string, code int, stderr string) {
	var out, err bytes.Buffer
	cmd := m.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &err
	cmd.Stdin = strings.NewReader("")
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Run()
	return strings.TrimSpace(out.String()), cmd.ProcessState.ExitCode(), err.String()
}

func (m *machine) must(args ...string) string {
	m.t.Helper()
	out, code, stderr := m.run(args...)
	if code != 0 {
		m.t.Fatalf("fwd %s: exit %d\n%s", strings.Join(args, " "), code, stderr)
	}
	return out
}

// start is a command that goes on; it returns its first event of that name, and everything said is kept.
func (m *machine) start(event string, args ...string) fwdtest.Event {
	m.t.Helper()
	e, _ := m.process(event, args...)
	return e
}

func (m *machine) process(event string, args ...string) (fwdtest.Event, *exec.Cmd) {
	m.t.Helper()
	return m.processBy(func(c *exec.Cmd) *exec.Cmd { return c }, event, args...)
}

// processBy is process with a word about how it is started.
func (m *machine) processBy(how func(*exec.Cmd) *exec.Cmd, event string, args ...string) (fwdtest.Event, *exec.Cmd) {
	m.t.Helper()
	cmd := how(m.command(append(args, "--json")...))
	var stderr, said bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan struct{})
	m.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
	})
	found := make(chan fwdtest.Event, 1)
	go func() { // ends with the process
		defer close(ended)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			var e fwdtest.Event
			said.Write(append(lines.Bytes(), '\n'))
			if json.Unmarshal(lines.Bytes(), &e) == nil && e.Event == event {
				select {
				case found <- e:
				default:
				}
			}
		}
		cmd.Wait()
	}()
	select {
	case e := <-found:
		return e, cmd
	case <-ended:
		m.t.Fatalf("fwd %s ended without %q: %s%s", strings.Join(args, " "), event, stderr.String(), said.String())
	case <-time.After(patience):
		m.t.Fatalf("fwd %s: no %q in %v", strings.Join(args, " "), event, patience)
	}
	return fwdtest.Event{}, nil
}

func (m *machine) status() (s fwdtest.Status) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.must("status", "--json")), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// pid is that of the daemon.
func (m *machine) pid() int {
	m.t.Helper()
	var s struct{ PID int }
	if err := json.Unmarshal([]byte(m.must("status", "--json")), &s); err != nil {
		m.t.Fatal(err)
	}
	return s.PID
}

// world is the network attacked: a relay that owns it, a NAS that exposes "data" and "other" (both echo), and a laptop
// with a session to "data" that is used all the time.
type world struct {
	t                  *testing.T
	relay, nas, laptop *machine
	relayPort          int
	local              string // of the laptop's forward
	relayPID, nasPID   int

	stall atomic.Int64 // longest time that one byte took, ns
	beats atomic.Int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, relay: newMachine(t), nas: newMachine(t), laptop: newMachine(t), relayPort: fwdtest.FreePort(t)}
	at := fmt.Sprintf("127.0.0.1:%d", w.relayPort)
	w.relay.start("relay", "relay", "--listen", at, "--announce", at, "--as", "relay")
	w.nas.must("join", w.invite("--admin"), "--as", "nas-box")
	w.laptop.must("join", w.invite(), "--as", "laptop")
	echo := serveEcho(t)
	w.nas.start("exposed", "expose", echo, "--name", "data")
	w.nas.start("exposed", "expose", echo, "--name", "other")
	w.local = w.laptop.start("listening", "connect", "data", "127.0.0.1:0").Local
	w.relayPID, w.nasPID = w.relay.pid(), w.nas.pid()
	w.beat()
	return w
}

func (w *world) invite(flags ...string) string {
	w.t.Helper()
	return w.relay.must(append([]string{"invite"}, flags...)...)
}

// beat sends a byte through the laptop's session again and again until the test ends. That it is ever reset fails.
func (w *world) beat() {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.local)
	if err != nil {
		w.t.Fatal(err)
	}
	stop, over := make(chan struct{}), make(chan struct{})
	go func() { // ends with the test
		defer close(over)
		b := make([]byte, 1)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			began := time.Now()
			conn.SetDeadline(began.Add(patience))
			_, err := conn.Write(b)
			if err == nil {
				_, err = io.ReadFull(conn, b)
			}
			if err != nil {
				w.t.Errorf("the member's session: %v", err)
				return
			}
			w.beats.Add(1)
			if took := int64(time.Since(began)); took > w.stall.Load() {
				w.stall.Store(took)
			}
		}
	}()
	w.t.Cleanup(func() { close(stop); <-over; conn.Close() })
	for began := time.Now(); w.beats.Load() < 3; time.Sleep(10 * time.Millisecond) {
		if w.t.Failed() || time.Since(began) > patience {
			w.t.Fatal("the member's session carries nothing")
		}
	}
}

// fresh is whether a new session works now.
func (w *world) fresh() error {
	conn, err := net.Dial("tcp", w.local)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(mostStall))
	sent, got := make([]byte, 64<<10), make([]byte, 64<<10)
	rand.Read(sent)
	go conn.Write(sent)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("other bytes came back")
	}
	return nil
}

// costs runs an attack and holds its victims to the bounds.
func (w *world) costs(attack func()) {
	w.t.Helper()
	victims := []struct {
		name string
		pid  int
	}{{"relay", w.relayPID}, {"nas", w.nasPID}}
	var before, most [2]usage
	for i, v := range victims {
		before[i] = usageOf(v.pid)
		most[i] = before[i]
	}
	w.stall.Store(0)
	beats := w.beats.Load()
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			for i, v := range victims {
				now := usageOf(v.pid)
				most[i].memory, most[i].descriptors = max(most[i].memory, now.memory), max(most[i].descriptors, now.descriptors)
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	began := time.Now()
	attack()
	if err := w.fresh(); err != nil {
		w.t.Errorf("a new session of a member, under attack: %v", err)
	}
	took := time.Since(began)
	close(stop)
	watch.Wait()
	for i, v := range victims {
		memory, descriptors := most[i].memory-before[i].memory, most[i].descriptors-before[i].descriptors
		w.t.Logf("%s: +%d MiB, +%d descriptors in %v; longest stall of a member %v, %d beats", v.name, memory>>20, descriptors, took.Round(time.Millisecond),
			time.Duration(w.stall.Load()).Round(time.Millisecond), w.beats.Load()-beats)
		if usageOf(v.pid).memory == 0 {
			w.t.Errorf("%s is gone", v.name)
		}
		if memory > mostMemory || descriptors > mostDescriptors {
			w.t.Errorf("%s took %d MiB and %d descriptors more, want at most %d and %d", v.name, memory>>20, descriptors, mostMemory>>20, mostDescriptors)
		}
	}
	if s := time.Duration(w.stall.Load()); s > mostStall {
		w.t.Errorf("a member's byte took %v", s)
	}
}

type usage struct{ memory, descriptors int64 }

func usageOf(pid int) (u usage) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			u.memory = kb << 10
		}
	}
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	u.descriptors = int64(len(fds))
	return u
}

// serveEcho is a target that sends back what it gets.
func serveEcho(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	return l.Addr().String()
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
