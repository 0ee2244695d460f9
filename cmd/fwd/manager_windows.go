package main

import (
	"context"
	"os"

	"github.com/kardianos/service"
)

// managed: Windows' service manager has started this.
func managed() bool { return !service.Interactive() }

// underManager runs f as Windows runs a service, if it was started as one: the
// manager is answered, and its word ends f. There is no terminal then, so what
// is printed goes to the log.
func (a *app) underManager(ctx context.Context, f func(context.Context) error) error {
	if service.Interactive() {
		return f(ctx)
	}
	if log, err := os.OpenFile(a.home.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		os.Stdout, os.Stderr = log, log
		a.out = newOutput(log, log)
		defer log.Close()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &job{f: f, tell: func(err error) { a.finish(ctx, err) }, ctx: ctx, cancel: cancel, ended: make(chan error, 1)}
	s, err := service.New(p, &service.Config{Name: serviceName})
	if err != nil {
		return failed("", "answer the service manager: %v", err)
	}
	if err := s.Run(); err != nil {
		return failed("", "run as a service: %v", err)
	}
	return p.err
}

// job is f as kardianos/service runs it.
type job struct {
	f      func(context.Context) error
	tell   func(error) // to the log
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan error
	err    error
}

func (m *job) Start(s service.Service) error {
	go func() { // ends with f, which Stop ends
		err := m.f(m.ctx)
		m.ended <- err
		if m.ctx.Err() == nil {
			m.tell(err)
			os.Exit(1) // so that the manager sees a failure, and begins anew
		}
	}()
	return nil
}

func (m *job) Stop(s service.Service) error {
	m.cancel()
	m.err = <-m.ended
	return nil
}
