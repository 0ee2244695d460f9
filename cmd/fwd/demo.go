package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

// The demo is the story of README.md told by this program's own commands: each actor
// has a home of its own in a temporary folder and runs as processes of its own, and
// all of them meet on loopback. Nothing outside this machine is contacted, and nothing
// stays behind.

func newDemo(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "demo",
		GroupID: groupSelf,
		Short:   "show all of it on this machine, in a few seconds",
		Long: `Run a relay, a machine that exposes a small web page, and one that connects to it, as
separate processes on this machine's loopback, with all they keep in a temporary
folder; fetch the page through them, show each step, the path and the figures; and
clean up. Nothing outside this machine is contacted.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.demo(cmd.Context())
		},
	}
}

const (
	// demoTimeout bounds the whole demo, 2 min: it takes seconds, and a slow board
	// some more.
	demoTimeout = 2 * time.Minute

	// demoBytes is the size of the download that is measured, 64 MiB: a second or so.
	demoBytes = 64 << 20
)

func (a *app) demo(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		return failed("", "find this program's file: %v", err)
	}
	dir, err := os.MkdirTemp("", "fwd-demo-")
	if err != nil {
		return failed("set TMPDIR to a folder that can be written", "make a temporary folder for the demo: %v", err)
	}
	// Piped into head, the demo still cleans up: with this a write to a closed pipe
	// fails instead of ending the process.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	d := &demo{app: a, ctx: ctx, exe: exe, dir: dir, began: time.Now()}
	defer func() {
		d.end()
		if e := os.RemoveAll(dir); err == nil && e != nil {
			err = failed("", "remove the demo's folder: %v", e)
		}
		if err == nil {
			d.step("", "all processes ended, %s removed", dir)
		}
	}()
	return d.play()
}

// A demo is the stage: where it plays, and who must leave at the end.
type demo struct {
	app   *app
	ctx   context.Context
	exe   string
	dir   string
	began time.Time

	actors []string // homes that may have a background daemon, in order of appearance
	procs  []*process
}

func (d *demo) play() error {
	site, err := d.serveSite()
	if err != nil {
		return err
	}
	defer site.Close()
	target := site.Addr().String()
	d.step("", "a web page on %s, which only the machine \"nas-box\" is to reach by itself", target)

	relayPort, err := freePort()
	if err != nil {
		return err
	}
	relayAddr := fmt.Sprintf("127.0.0.1:%d", relayPort)
	relay, err := d.start("vps", "", "relay", "--listen", relayAddr, "--announce", relayAddr, "--as", "vps", "--json")
	if err != nil {
		return err
	}
	if _, err := relay.await("relay"); err != nil {
		return err
	}
	first, err := relay.await("invite")
	if err != nil {
		return err
	}
	d.step("vps", "relays on %s and owns the network", relayAddr)

	if _, err := d.run("nas-box", first.Invite, "join", "--as", "nas-box", "--json"); err != nil {
		return err
	}
	d.step("nas-box", "joined by the relay's invite, %s…", first.Invite[:min(len(first.Invite), 16)])
	expose, err := d.start("nas-box", "", "expose", target, "--name", "web", "--json")
	if err != nil {
		return err
	}
	if _, err := expose.await("exposed"); err != nil {
		return err
	}
	d.step("nas-box", "exposes %s as \"web\"", target)

	invite, err := d.run("nas-box", "", "invite", "--json")
	if err != nil {
		return err
	}
	code, err := eventOf(invite, "invite")
	if err != nil {
		return err
	}
	if _, err := d.run("laptop", code.Invite, "join", "--as", "laptop", "--json"); err != nil {
		return err
	}
	d.step("laptop", "joined by an invite of nas-box")
	connect, err := d.start("laptop", "", "connect", "web", "0", "--json")
	if err != nil {
		return err
	}
	asked := time.Now()
	listening, err := connect.await("listening")
	if err != nil {
		return err
	}
	d.step("laptop", "connects \"web\": listening on %s after %s", listening.Local, ms(time.Since(asked)))

	if err := d.fetch(listening.Local, target); err != nil {
		return err
	}
	return d.showPath()
}

// fetch gets the page and the download through the forward and directly, and compares.
func (d *demo) fetch(local, target string) error {
	began := time.Now()
	page, err := d.get("http://" + local + "/")
	if err != nil {
		return err
	}
	d.step("laptop", "GET http://%s/  %s, %d bytes: %q", local, ms(time.Since(began)), len(page), strings.TrimSpace(string(page)))
	began = time.Now()
	if _, err := d.get("http://" + local + "/"); err != nil {
		return err
	}
	d.step("laptop", "once more, on the path that is up: %s", ms(time.Since(began)))

	began = time.Now()
	got, err := d.get("http://" + local + "/download")
	if err != nil {
		return err
	}
	took := time.Since(began)
	want, err := d.get("http://" + target + "/download")
	if err != nil {
		return err
	}
	if sha256.Sum256(got) != sha256.Sum256(want) {
		return failed("", "the download through the forward differs from the original: %d and %d bytes", len(got), len(want))
	}
	d.step("laptop", "%s in %s: %.0f Mbit/s, every byte as sent", bytesWord(int64(len(got))), ms(took), float64(len(got))*8/1e6/took.Seconds())
	return nil
}

func (d *demo) get(url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, failed("", "fetch through the forward: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, failed("", "fetch through the forward: %v", err)
	}
	return body, nil
}

// showPath tells by which way the laptop reaches the page.
func (d *demo) showPath() error {
	out, err := d.run("laptop", "", "status", "--json")
	if err != nil {
		return err
	}
	var s daemon.Status
	if err := json.Unmarshal(out, &s); err != nil {
		return failed("", "read the laptop's status: %v", err)
	}
	for _, f := range s.Forwards {
		if f.Path != nil {
			d.step("laptop", "path to nas-box: %s", pathWords(f.Path))
		}
	}
	d.step("laptop", "ending it all again; this took %s", ms(time.Since(d.began)))
	return nil
}

// serveSite is the web page.
func (d *demo) serveSite() (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, failed("", "serve the demo's page: %v", err)
	}
	download := make([]byte, demoBytes)
	rand.NewChaCha8([32]byte{'f', 'w', 'd'}).Read(download)
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello from behind nas-box\n") })
	mux.HandleFunc("/download", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "download", time.Time{}, bytes.NewReader(download))
	})
	go http.Serve(ln, mux) // ends with the listener
	return ln, nil
}

// step is what `fwd demo --json` prints.
type step struct {
	Event   string `json:"event"`
	Machine string `json:"machine"`
	Message string `json:"message"`
}

func (d *demo) step(actor, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if d.app.out.json {
		d.app.out.object(step{Event: "step", Machine: actor, Message: text})
		return
	}
	d.app.out.answer("%6.2fs  %-8s %s", time.Since(d.began).Seconds(), actor, text)
}

// command prepares one of fwd's commands as an actor.
func (d *demo) command(ctx context.Context, actor string, args ...string) (*exec.Cmd, error) {
	home := filepath.Join(d.dir, actor)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, failed("", "make the home of %s: %v", actor, err)
	}
	known := false
	for _, a := range d.actors {
		known = known || a == actor
	}
	if !known {
		d.actors = append(d.actors, actor)
	}
	cmd := exec.CommandContext(ctx, d.exe, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FWD_") { // the actors are not this user
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "FWD_HOME="+home)
	cmd.Cancel = func() error { return interrupt(cmd.Process) }
	cmd.WaitDelay = 10 * time.Second
	return cmd, nil
}

// run runs a command to its end and returns its answer.
func (d *demo) run(actor, stdin string, args ...string) ([]byte, error) {
	cmd, err := d.command(d.ctx, actor, args...)
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, d.failure(actor, args, out, stderr.Bytes(), err)
	}
	return out, nil
}

// failure tells what an actor's command said when it failed.
func (d *demo) failure(actor string, args []string, stdout, stderr []byte, err error) error {
	if cause := context.Cause(d.ctx); cause != nil {
		return cause
	}
	if e, perr := eventOf(stdout, "error"); perr == nil && e.Failure != nil {
		return failed(e.Hint, "%s: fwd %s: %s", actor, args[0], e.What)
	}
	return failed("", "%s: fwd %s: %v %s", actor, args[0], err, bytes.TrimSpace(stderr))
}

// A process is a command of an actor that goes on.
type process struct {
	demo   *demo
	actor  string
	args   []string
	cmd    *exec.Cmd
	events chan daemon.Event // closed when it has ended
	stderr syncBuffer
	ended  chan struct{}
	err    error // set before ended is closed
}

// start begins a command that goes on until the demo ends.
func (d *demo) start(actor, stdin string, args ...string) (*process, error) {
	cmd, err := d.command(context.WithoutCancel(d.ctx), actor, args...)
	if err != nil {
		return nil, err
	}
	p := &process{demo: d, actor: actor, args: args, cmd: cmd, events: make(chan daemon.Event, 64), ended: make(chan struct{})}
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &p.stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, failed("", "%s: read what fwd %s prints: %v", actor, args[0], err)
	}
	if err := cmd.Start(); err != nil {
		return nil, failed("", "%s: fwd %s: %v", actor, args[0], err)
	}
	d.procs = append(d.procs, p)
	go p.follow(out)
	return p, nil
}

// follow reads the process's events until it ends.
func (p *process) follow(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e daemon.Event
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			select {
			case p.events <- e:
			default: // nobody waits for it any more
			}
		}
	}
	p.err = p.cmd.Wait()
	close(p.events)
	close(p.ended)
}

// await waits for the next event of a kind.
func (p *process) await(kind string) (daemon.Event, error) {
	for {
		select {
		case <-p.demo.ctx.Done():
			return daemon.Event{}, failed("", "%s: fwd %s did not come to %q in %s", p.actor, p.args[0], kind, demoTimeout)
		case e, ok := <-p.events:
			switch {
			case !ok:
				return e, p.demo.failure(p.actor, p.args, nil, p.stderr.Bytes(), errors.Join(errors.New("ended early"), p.err))
			case e.Event == kind:
				return e, nil
			case e.Event == "error" && e.Failure != nil:
				return e, failed(e.Hint, "%s: fwd %s: %s", p.actor, p.args[0], e.What)
			}
		}
	}
}

// end ends what goes on, last come first gone, and the background daemons.
func (d *demo) end() {
	for i := len(d.procs) - 1; i >= 0; i-- {
		p := d.procs[i]
		interrupt(p.cmd.Process)
		select {
		case <-p.ended:
		case <-time.After(p.cmd.WaitDelay):
			p.cmd.Process.Kill()
			<-p.ended
		}
	}
	for _, actor := range d.actors {
		cmd, err := d.command(context.Background(), actor, "stop")
		if err == nil {
			cmd.Run() // exit 8 is as good: none runs
		}
	}
}

// eventOf finds an event in the JSON lines of an answer.
func eventOf(out []byte, kind string) (daemon.Event, error) {
	for line := range bytes.Lines(out) {
		var e daemon.Event
		if json.Unmarshal(line, &e) == nil && e.Event == kind {
			return e, nil
		}
	}
	return daemon.Event{}, failed("", "no %q in the answer %q", kind, out)
}

// freePort is a port that is free for TCP and UDP now.
func freePort() (int, error) {
	for range 20 {
		t, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, failed("", "find a free port: %v", err)
		}
		port := t.Addr().(*net.TCPAddr).Port
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		t.Close()
		if err == nil {
			u.Close()
			return port, nil
		}
	}
	return 0, failed("", "find a port that is free for TCP and UDP: none in 20 tries")
}

func ms(d time.Duration) string {
	if d >= 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return millis(float64(d.Microseconds()) / 1000)
}

// syncBuffer is a bytes.Buffer for two goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) Bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.b.Bytes())
}
