package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/net/proxy"

	"fwd/internal/daemon"
	"fwd/itest/fwdtest"
)

// The scripts in testdata are sessions of several people with the real program, each
// with a home of its own. Besides testscript's own commands they have
//
//	as NAME                     the commands that follow are of this person
//	exits CODE fwd …            runs it, with the file "stdin" if one was set, and
//	                            wants this exit status; then stdout and stderr
//	told CODE fwd …             the same, and wants one error line and one hint on
//	                            stderr, nothing on stdout
//	json CODE fwd …             runs it, and wants one JSON value on stdout and nothing on
//	                            stderr
//	start NAME fwd …            begins a command that goes on
//	await NAME REGEXP [VAR]     waits until a line of its stdout or stderr matches, and
//	                            keeps the first group in VAR
//	awaitnew NAME REGEXP        the same, for what has not been awaited yet
//	keep FILE REGEXP VAR        the first group of what matches in a file, or stdout
//	finish NAME SIGNAL CODE     sends INT, TERM, HUP or 0, and wants it to end so
//	killdaemon                  kill -9 of this person's daemon
//	port VAR                    a free port
//	ports VAR N                 a range of N free ports; VAR0, VAR1, … are their addresses
//	hellos VAR N TEXT           servers at such a range, which say TEXT0, TEXT1, …
//	portof VAR ADDR             the port of an address
//	hello VAR TEXT              a server that says TEXT and then echoes; its address
//	hellosocket PATH TEXT       the same at a unix socket
//	get ADDR TEXT               connects and wants TEXT, then its own words back
//	socksget PROXY HOST:PORT TEXT [N]
//	                            the same through a SOCKS proxy; with N its own words are so
//	                            many bytes
//	socksrefused PROXY HOST:PORT REGEXP
//	                            wants the proxy to refuse, with these words
//	refused ADDR                wants nobody to listen there
//	occupied VAR                an address where another program listens
//	mangle VAR                  changes a letter in the middle of a variable's value
//	sshd CONFIG                 a private sshd that lets this user in, and an ssh_config for
//	                            it; the condition [sshd] says whether there is one
//	                            (and [nc] whether there is a netcat that speaks SOCKS)
//	bytes N FILE                a file of N random bytes
//	append FROM TO              adds a file to another
//	foreign KEY KNOWN HOST      a known_hosts that has another key for a host
//	expand FROM TO              copies a file, with its $VARIABLES replaced, at one stroke
//
// No script sleeps: what takes time is awaited, for patience.
const patience = time.Minute

func TestScripts(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the scripts send signals")
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			s := &stage{procs: map[string]*background{}, homes: map[string]bool{}}
			env.Values[stageKey{}] = s
			env.Setenv("FWD_HOME", filepath.Join(env.WorkDir, "nobody"))
			env.Setenv("NO_COLOR", "1")
			env.Defer(s.clear)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "sshd" {
				return sshdPath() != "", nil
			}
			if cond == "nc" {
				usage, _ := exec.Command("nc", "-h").CombinedOutput()
				return bytes.Contains(usage, []byte("-X proxy_protocol")), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"as":           cmdAs,
			"exits":        func(ts *testscript.TestScript, neg bool, args []string) { exits(ts, args) },
			"told":         cmdTold,
			"json":         func(ts *testscript.TestScript, neg bool, args []string) { cmdJSON(ts, args) },
			"start":        cmdStart,
			"await":        func(ts *testscript.TestScript, neg bool, args []string) { cmdAwait(ts, args, false) },
			"awaitnew":     func(ts *testscript.TestScript, neg bool, args []string) { cmdAwait(ts, args, true) },
			"keep":         cmdKeep,
			"finish":       cmdFinish,
			"killdaemon":   cmdKillDaemon,
			"port":         cmdPort,
			"ports":        cmdPorts,
			"hellos":       cmdHellos,
			"portof":       cmdPortOf,
			"hello":        cmdHello,
			"hellosocket":  cmdHelloSocket,
			"get":          cmdGet,
			"socksget":     cmdSocksGet,
			"socksrefused": cmdSocksRefused,
			"refused":      cmdRefused,
			"occupied":     cmdOccupied,
			"mangle":       cmdMangle,
			"expand":       cmdExpand,
			"sshd":         cmdSSHD,
			"bytes":        cmdBytes,
			"append":       cmdAppend,
			"foreign":      cmdForeign,
		},
	})
}

type stageKey struct{}

// A stage is what one script has running.
type stage struct {
	procs     map[string]*background
	homes     map[string]bool
	listeners []net.Listener
	servers   []*exec.Cmd
}

func stageOf(ts *testscript.TestScript) *stage { return ts.Value(stageKey{}).(*stage) }

// clear ends what a script left: commands, then daemons.
func (s *stage) clear() {
	for _, p := range s.procs {
		p.cmd.Process.Kill()
		<-p.ended
	}
	for home := range s.homes {
		stopDaemon(home)
		networks, _ := daemon.Networks(context.Background(), daemon.Home{State: home})
		for _, n := range networks {
			stopDaemon(n.Home)
		}
	}
	for _, ln := range s.listeners {
		ln.Close()
	}
	for _, server := range s.servers {
		server.Process.Kill()
		server.Wait()
	}
}

// stopDaemon ends a home's daemon and waits until it is gone.
func stopDaemon(home string) {
	a := &app{home: daemon.Home{State: home}, out: newOutput(os.Stdout, os.Stderr)}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if a.askRunning(ctx, daemon.StopRequest{}, nil) == nil {
		a.awaitEnd(ctx)
	}
}

func cmdAs(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: as NAME")
	}
	home := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(home, 0o700))
	ts.Setenv("FWD_HOME", home)
	stageOf(ts).homes[home] = true
}

func exits(ts *testscript.TestScript, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE fwd …")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s exits %d, want %d\n%s%s", strings.Join(args[1:], " "), got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func cmdTold(ts *testscript.TestScript, neg bool, args []string) {
	exits(ts, args)
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("an error on stdout: %q", out)
	}
	var told []string
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		if strings.HasPrefix(line, "fwd: ") {
			told = append(told, line)
		}
	}
	if len(told) != 2 || !strings.HasPrefix(told[0], "fwd: error: ") || !strings.HasPrefix(told[1], "fwd: hint: ") {
		ts.Fatalf("want one error and one hint:\n%s", ts.ReadFile("stderr"))
	}
}

func cmdJSON(ts *testscript.TestScript, args []string) {
	exits(ts, args)
	if out := ts.ReadFile("stdout"); !json.Valid([]byte(out)) {
		ts.Fatalf("want one JSON value, got %q", out)
	}
	if told := ts.ReadFile("stderr"); told != "" {
		ts.Fatalf("with JSON on stdout, stderr has %q", told)
	}
}

// A background is a command that goes on.
type background struct {
	cmd   *exec.Cmd
	ended chan struct{}

	mu      sync.Mutex
	changed chan struct{} // closed and renewed with each output
	out     bytes.Buffer
	seen    int // how much of out has been awaited
}

func (p *background) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
	return p.out.Write(b)
}

func (p *background) output(from int) (string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()[from:], p.changed
}

func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 || args[1] != "fwd" {
		ts.Fatalf("usage: start NAME fwd …")
	}
	s := stageOf(ts)
	if p := s.procs[args[0]]; p != nil {
		ts.Fatalf("%s is running", args[0])
	}
	path, err := exec.LookPath("fwd")
	ts.Check(err)
	p := &background{cmd: exec.Command(path, args[2:]...), ended: make(chan struct{}), changed: make(chan struct{})}
	p.cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"FWD_HOME", "PATH", "TMPDIR", "NO_COLOR"} {
		p.cmd.Env = append(p.cmd.Env, name+"="+ts.Getenv(name))
	}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	ts.Check(p.cmd.Start())
	s.procs[args[0]] = p
	go func() { // ends with the process, which clear kills at the latest
		p.cmd.Wait()
		close(p.ended)
	}()
}

func procOf(ts *testscript.TestScript, name string) *background {
	p := stageOf(ts).procs[name]
	if p == nil {
		ts.Fatalf("%s was not started", name)
	}
	return p
}

func cmdAwait(ts *testscript.TestScript, args []string, onlyNew bool) {
	if len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: await NAME REGEXP [VAR]")
	}
	p := procOf(ts, args[0])
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	from := 0
	if onlyNew {
		from = p.seen
	}
	deadline := time.After(patience)
	ended := p.ended
	for {
		out, changed := p.output(from)
		if m := re.FindStringSubmatchIndex(out); m != nil {
			p.seen = max(p.seen, from+m[1])
			if len(args) == 3 {
				ts.Setenv(args[2], out[m[2]:m[3]])
			}
			return
		}
		select {
		case <-changed:
		case <-ended:
			ended = nil // once more, for its last words
			if out, _ := p.output(from); !re.MatchString(out) {
				ts.Fatalf("%s ended (%v) without %q:\n%s", args[0], p.cmd.ProcessState, args[1], out)
			}
		case <-deadline:
			ts.Fatalf("%s has not said %q:\n%s", args[0], args[1], out)
		}
	}
}

func cmdKeep(ts *testscript.TestScript, neg bool, args []string) {
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile(args[0]))
	if m == nil {
		ts.Fatalf("no %q in %s", args[1], args[0])
	}
	ts.Setenv(args[2], m[1])
}

func cmdFinish(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: finish NAME SIGNAL CODE")
	}
	signals := map[string]os.Signal{"INT": os.Interrupt, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "0": nil}
	p := procOf(ts, args[0])
	if sig, ok := signals[args[1]]; !ok {
		ts.Fatalf("no signal %q", args[1])
	} else if sig != nil {
		ts.Check(p.cmd.Process.Signal(sig))
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		ts.Fatalf("%s has not ended", args[0])
	}
	out, _ := p.output(0)
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != args[2] {
		ts.Fatalf("%s exits %s, want %s:\n%s", args[0], got, args[2], out)
	}
	delete(stageOf(ts).procs, args[0])
}

func cmdKillDaemon(ts *testscript.TestScript, neg bool, args []string) {
	c, err := daemon.Dial(context.Background(), daemon.Home{State: ts.Getenv("FWD_HOME")})
	ts.Check(err)
	defer c.Close()
	proc, err := os.FindProcess(c.Greeting.PID)
	ts.Check(err)
	ts.Check(proc.Kill())
}

func cmdPort(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], strconv.Itoa(fwdtest.FreePort(ts)))
}

// portRange finds n free ports in a row; NAME becomes them as a range, NAME0 and so on their addresses.
func portRange(ts *testscript.TestScript, name, n string) (addrs []string) {
	count, err := strconv.Atoi(n)
	ts.Check(err)
	if count > fwdtest.Row {
		ts.Fatalf("%d ports in a row, at most %d can be had", count, fwdtest.Row)
	}
	first := fwdtest.FreePort(ts)
	ts.Setenv(name, fmt.Sprintf("%d-%d", first, first+count-1))
	for i := range count {
		addrs = append(addrs, net.JoinHostPort("127.0.0.1", strconv.Itoa(first+i)))
		ts.Setenv(name+strconv.Itoa(i), addrs[i])
	}
	return addrs
}

func cmdPorts(ts *testscript.TestScript, neg bool, args []string) { portRange(ts, args[0], args[1]) }

func cmdHellos(ts *testscript.TestScript, neg bool, args []string) {
	s := stageOf(ts)
	for i, at := range portRange(ts, args[0], args[1]) {
		ln, err := net.Listen("tcp", at)
		ts.Check(err)
		s.listeners = append(s.listeners, ln)
		go greet(ln, args[2]+strconv.Itoa(i))
	}
}

func cmdPortOf(ts *testscript.TestScript, neg bool, args []string) {
	_, port, err := net.SplitHostPort(args[1])
	ts.Check(err)
	ts.Setenv(args[0], port)
}

func listen(ts *testscript.TestScript) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	s := stageOf(ts)
	s.listeners = append(s.listeners, ln)
	return ln
}

func cmdHello(ts *testscript.TestScript, neg bool, args []string) {
	ln := listen(ts)
	ts.Setenv(args[0], ln.Addr().String())
	go greet(ln, args[1])
}

// cmdHelloSocket is the same at a unix socket.
func cmdHelloSocket(ts *testscript.TestScript, neg bool, args []string) {
	ln, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	s := stageOf(ts)
	s.listeners = append(s.listeners, ln)
	go greet(ln, args[1])
}

// greet says text to each connection and echoes; it ends with the listener.
func greet(ln net.Listener, text string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() { // ends with the connection
			defer c.Close()
			io.WriteString(c, text+"\n")
			io.Copy(c, c)
		}()
	}
}

// cmdGet talks to a hello server through a forward.
func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	const words = "and back\n"
	network, addr := "tcp", args[0]
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	// A forward accepts before its daemon is all there; a killed one is being started
	// again.
	var got []byte
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if got, err = exchange(network, addr, words); err == nil {
			break
		}
	}
	ts.Check(err)
	if want := args[1] + "\n" + words; string(got) != want {
		ts.Fatalf("got %q from %s, want %q", got, addr, want)
	}
}

func exchange(network, addr, words string) ([]byte, error) {
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, words); err != nil {
		return nil, err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return nil, err
	}
	return io.ReadAll(c)
}

func socksDialer(ts *testscript.TestScript, addr string) proxy.Dialer {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	d, err := proxy.SOCKS5(network, addr, nil, &net.Dialer{Timeout: patience})
	ts.Check(err)
	return d
}

// cmdSocksGet talks to a hello server as curl --socks5-hostname would.
func cmdSocksGet(ts *testscript.TestScript, neg bool, args []string) {
	words := []byte("and back\n")
	if len(args) == 4 {
		n, err := strconv.Atoi(args[3])
		ts.Check(err)
		words = make([]byte, n)
		rand.Read(words)
	}
	c, err := socksDialer(ts, args[0]).Dial("tcp", args[1])
	ts.Check(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	go func() { // ends with its last byte, or with the connection
		if _, err := c.Write(words); err == nil {
			c.(interface{ CloseWrite() error }).CloseWrite()
		}
	}()
	got, err := io.ReadAll(c)
	ts.Check(err)
	if want := append([]byte(args[2]+"\n"), words...); !bytes.Equal(got, want) {
		ts.Fatalf("got %d bytes from %s by %s, want %d: %.80q", len(got), args[1], args[0], len(want), got)
	}
}

func cmdSocksRefused(ts *testscript.TestScript, neg bool, args []string) {
	c, err := socksDialer(ts, args[0]).Dial("tcp", args[1])
	if err == nil {
		c.Close()
		ts.Fatalf("%s is reached by %s", args[1], args[0])
	}
	if ok, e := regexp.MatchString(args[2], err.Error()); e != nil || !ok {
		ts.Fatalf("%s by %s: %v, want %q", args[1], args[0], err, args[2])
	}
}

func cmdRefused(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", args[0], patience)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			c.Close()
		}
		if time.Now().After(end) {
			ts.Fatalf("%s still accepts: %v", args[0], err)
		}
	}
}

func cmdOccupied(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], listen(ts).Addr().String())
}

func cmdMangle(ts *testscript.TestScript, neg bool, args []string) {
	b := []byte(ts.Getenv(args[0]))
	i := len(b) / 2
	if b[i] == 'q' {
		b[i] = 'p'
	} else {
		b[i] = 'q'
	}
	ts.Setenv(args[0], string(b))
}

func cmdExpand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: expand FROM TO")
	}
	to := ts.MkAbs(args[1])
	ts.Check(os.WriteFile(to+".new", []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
	ts.Check(os.Rename(to+".new", to))
}
