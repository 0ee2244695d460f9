//go:build linux

package fwdtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fwd/itest/lab"
)

// Process is a fwd command that goes on, run with --json.
type Process struct {
	t    testing.TB
	name string
	args []string
	cmd  *lab.Cmd
	over chan struct{} // closed when the process has ended and all its output is here

	mu     sync.Mutex
	said   bytes.Buffer // stdout and stderr as they came
	events []Event
	news   chan struct{} // closed and replaced at each event
}

// Start starts fwd and does not wait for its end; the peer's end will bring it about.
func (p *Peer) Start(args ...string) *Process {
	p.t.Helper()
	proc := &Process{
		t: p.t, name: p.Host.Name(), args: append(args, "--json"),
		over: make(chan struct{}), news: make(chan struct{}),
	}
	proc.cmd = p.command(context.Background(), proc.args...)
	stdout, err := proc.cmd.StdoutPipe()
	if err == nil {
		proc.cmd.Stderr = proc // an io.Writer
		err = proc.cmd.Start()
	}
	if err != nil {
		p.t.Fatalf("%s: fwd %s: %v", proc.name, strings.Join(args, " "), err)
	}
	p.procs = append(p.procs, proc)
	go proc.listen(stdout) // ends with the process
	return proc
}

// Write takes what comes on stderr.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

// listen takes what comes on stdout, until the end.
func (p *Process) listen(stdout io.Reader) {
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e Event
		err := json.Unmarshal(lines.Bytes(), &e)
		p.mu.Lock()
		fmt.Fprintf(&p.said, "%s %s\n", time.Now().Format("05.000"), lines.Bytes())
		if err == nil {
			p.events = append(p.events, e)
			close(p.news)
			p.news = make(chan struct{})
		}
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, stdout) // after a line longer than the buffer
	_ = p.cmd.Wait()                   // its failure is its exit code
	close(p.over)
}

// Wait waits for an event of that name, past ones included.
func (p *Process) Wait(event string) Event {
	p.t.Helper()
	return p.WaitFor(event, func(Event) bool { return true })
}

// WaitFor waits for an event of that name which is as wanted, past ones included.
func (p *Process) WaitFor(event string, wanted func(Event) bool) Event {
	p.t.Helper()
	limit := time.After(Limit)
	for next := 0; ; {
		p.mu.Lock()
		events, news := p.events, p.news
		p.mu.Unlock()
		for ; next < len(events); next++ {
			if events[next].Event == event && wanted(events[next]) {
				return events[next]
			}
		}
		select {
		case <-news:
		case <-p.over:
			p.mu.Lock()
			done := next == len(p.events)
			p.mu.Unlock()
			if done {
				p.t.Fatalf("%s: fwd %s ended (exit %d) without %q\n%s", p.name, strings.Join(p.args, " "), p.Code(), event, p.Said())
			}
		case <-limit:
			p.t.Fatalf("%s: fwd %s in %v without %q\n%s", p.name, strings.Join(p.args, " "), Limit, event, p.Said())
		}
	}
}

// Events are those so far.
func (p *Process) Events() []Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Event(nil), p.events...)
}

// Said is all output so far, stdout's lines with the second they came in.
func (p *Process) Said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

// Pid is the process ID.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Code waits for the end and returns the exit status, -1 for a signal.
func (p *Process) Code() int {
	<-p.over
	return p.cmd.ProcessState.ExitCode()
}

// Interrupt ends the process as Ctrl-C does, by force if it takes too long, and returns the exit status.
func (p *Process) Interrupt() int { return p.signal(syscall.SIGINT) }

// Kill ends the process as kill -9 does.
func (p *Process) Kill() int { return p.signal(syscall.SIGKILL) }

func (p *Process) signal(s syscall.Signal) int {
	select {
	case <-p.over:
		return p.Code()
	default:
	}
	_ = p.cmd.Process.Signal(s) // refused if it has just ended
	select {
	case <-p.over:
	case <-time.After(endLimit):
		p.t.Errorf("%s: fwd %s did not end in %v after %v; killed", p.name, strings.Join(p.args, " "), endLimit, s)
		_ = p.cmd.Process.Kill()
	}
	return p.Code()
}
