//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// A soakFault strikes, lasts, and is over when strike returns.
type soakFault struct {
	name   string
	strike func(s *soak, lasts time.Duration)
	lasts  time.Duration // at most; zero: no time
}

// None lasts as long as a new connection is let wait for its session, 30 s, but for the first ones, which leave a way.
var soakFaults = []soakFault{
	{"direct path cut", func(s *soak, lasts time.Duration) {
		mend := s.lab.Sever(s.nas.Host.PublicAddr(), s.laptop.Host.PublicAddr())
		time.Sleep(lasts)
		mend()
	}, 40 * time.Second},
	{"one-way blackhole", func(s *soak, lasts time.Duration) {
		mend := s.lab.SeverOneWay(s.nas.Host.PublicAddr(), s.laptop.Host.PublicAddr())
		time.Sleep(lasts)
		mend()
	}, 40 * time.Second},
	{"UDP blocked", func(s *soak, lasts time.Duration) {
		s.nasHome.BlockUDP()
		time.Sleep(lasts)
		s.nasHome.UnblockUDP()
	}, 40 * time.Second},
	{"20 % loss", func(s *soak, lasts time.Duration) {
		bad, good := lab.Shape{Delay: 10 * time.Millisecond, Loss: 0.2}, lab.Shape{Delay: 10 * time.Millisecond}
		s.nasHome.Cable().Reshape(bad, bad)
		time.Sleep(lasts)
		s.nasHome.Cable().Reshape(good, good)
	}, 10 * time.Second},
	{"relay killed, restarted", func(s *soak, lasts time.Duration) {
		s.awake.Lock()
		defer s.awake.Unlock()
		s.relaying.Kill()
		time.Sleep(lasts)
		s.startRelay()
	}, 15 * time.Second},
	{"laptop's NAT flushed", func(s *soak, _ time.Duration) { s.homes[0].FlushNAT(); s.homes[1].FlushNAT() }, 0},
	{"NAS's NAT flushed", func(s *soak, _ time.Duration) { s.nasHome.FlushNAT() }, 0},
	{"NAS's address changed", func(s *soak, _ time.Duration) { s.nasHome.ChangeAddress() }, 0},
	{"laptop moved", func(s *soak, _ time.Duration) {
		s.homes[0], s.homes[1] = s.homes[1], s.homes[0]
		s.laptop.Host.MoveTo(s.homes[0])
	}, 0},
	{"laptop's cable out", func(s *soak, lasts time.Duration) {
		s.laptop.Host.Cable().Unplug()
		time.Sleep(lasts)
		s.laptop.Host.Cable().Plug()
	}, 20 * time.Second},
	{"laptop asleep", func(s *soak, lasts time.Duration) { s.stop(s.laptop, lasts) }, 20 * time.Second},
	{"NAS asleep", func(s *soak, lasts time.Duration) { s.stop(s.nas, lasts) }, 20 * time.Second},
	{"deny and allow", func(s *soak, _ time.Duration) { s.deny() }, 0},
}

// faults plays them all in a random order, then in another.
func (s *soak) faults(ctx context.Context, span time.Duration) {
	quiet := min(max(span/60, 4*time.Second), 35*time.Second) // on average, between two
	for {
		for _, i := range s.rng.Perm(len(soakFaults)) {
			f := soakFaults[i]
			rest := quiet/2 + time.Duration(s.rng.Int64N(int64(quiet)))
			lasts := min(f.lasts, quiet/2+time.Duration(s.rng.Int64N(int64(quiet))))
			if f.name == "laptop's cable out" {
				lasts = f.lasts
			}
			if !pause(ctx, rest) {
				return
			}
			path := s.path()
			s.mu.Lock()
			s.fault = f.name
			s.mu.Unlock()
			began := time.Now()
			f.strike(s, lasts)
			s.t.Logf("%s %v fault: %s, %v, struck while %s", began.Format(time.TimeOnly), s.at(), f.name, time.Since(began).Round(time.Millisecond), path)
			s.did("faults", 0)
		}
	}
}

// path is how the laptop reaches the NAS now.
func (s *soak) path() string {
	s.awake.RLock()
	defer s.awake.RUnlock()
	for _, f := range s.laptop.Status().Forwards {
		if f.Service == "data" && f.Path != nil {
			return f.Path.Kind + " " + f.Path.Transport
		}
	}
	return "no path"
}

// stop freezes a daemon as a suspended machine is.
func (s *soak) stop(p *fwdtest.Peer, lasts time.Duration) {
	s.awake.Lock()
	defer s.awake.Unlock()
	pid := p.Status().PID
	if err := errors.Join(syscall.Kill(pid, syscall.SIGSTOP), pauseErr(lasts), syscall.Kill(pid, syscall.SIGCONT)); err != nil {
		s.lost("stop "+p.Host.Name(), err)
	}
}

func pauseErr(d time.Duration) error { time.Sleep(d); return nil }

// deny takes a service away from the laptop, which ends its connections, and gives it back.
func (s *soak) deny() {
	s.awake.RLock()
	defer s.awake.RUnlock()
	began := time.Now()
	if r := s.nas.Run("deny", "held", "laptop"); r.Code != 0 {
		s.lost("fwd deny", fmt.Errorf("exit %d: %s", r.Code, r.Stderr))
		return
	}
	for _, e := range s.held {
		if e == nil {
			continue
		}
		select {
		case <-e.over:
			s.did("denied", time.Since(began))
		case <-time.After(soakPatience):
			s.lost("deny", errors.New("a connection goes on"))
		}
		if e.err == io.EOF {
			s.lost("deny", errors.New("an end of file instead of a reset"))
		}
	}
	if e, err := echoOn(s.laptop.Host, s.local["held"]); err == nil {
		if _, err := e.ask(1); err == nil {
			s.lost("deny", errors.New("a new connection is let in"))
		}
		e.conn.Close()
	}
	if r := s.nas.Run("allow", "held", "laptop"); r.Code != 0 {
		s.lost("fwd allow", fmt.Errorf("exit %d: %s", r.Code, r.Stderr))
		return
	}
	for i := range s.held {
		s.held[i] = s.dialEcho("a connection after allow", "held")
	}
}

// keepFile writes what is worth a look afterwards.
func (s *soak) keepFile(name, text string) {
	if *soakKeep == "" {
		return
	}
	if err := errors.Join(os.MkdirAll(*soakKeep, 0o700), os.WriteFile(*soakKeep+"/"+name, []byte(text), 0o600)); err != nil {
		s.t.Log(err)
	}
}
