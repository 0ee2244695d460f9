package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"fwd/internal/daemon"
)

// ask has the daemon carry out one request, starting it if need be.
func (a *app) ask(ctx context.Context, request any, on func(daemon.Event)) error {
	answered := false
	for tries := 1; ; tries++ {
		c, err := daemon.Start(ctx, a.home)
		if err != nil {
			return err
		}
		a.greet(c)
		err = c.Call(ctx, request, func(e daemon.Event) {
			answered = true
			on(e)
		})
		// A daemon that was just ending, a minute after the last wish, may still
		// have greeted.
		if errors.Is(err, daemon.ErrLost) && !answered && tries < 3 {
			continue
		}
		return err
	}
}

// askRunning has the daemon carry out one request if it runs.
func (a *app) askRunning(ctx context.Context, request any, on func(daemon.Event)) error {
	c, err := daemon.Dial(ctx, a.home)
	if err != nil {
		return err
	}
	a.greet(c)
	return c.Call(ctx, request, on)
}

const (
	// firstRetry and lastRetry bound the pause before a dead daemon is started
	// again, doubling from 100 ms, since most die once, to 5 s, so that one that
	// cannot live costs little.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second

	// steadyAfter is how long a daemon must have lived for the pause to begin anew.
	steadyAfter = 10 * time.Second
)

// hold has the daemon carry out a request that lasts, and repeats it with a new one
// when the daemon dies: it starts that itself, or waits until the machine's service
// has. next gives the request, again each time, so that a repetition can ask for what
// the first one got.
func (a *app) hold(ctx context.Context, next func() any, on func(daemon.Event)) error {
	pause := firstRetry
	for {
		began := time.Now()
		err := a.ask(ctx, next(), on)
		if !errors.Is(err, daemon.ErrLost) || ctx.Err() != nil {
			return err
		}
		if time.Since(began) > steadyAfter {
			pause = firstRetry
		}
		if a.home.System {
			a.out.story("the machine's fwd service went away; waiting for it")
			if err := daemon.AwaitService(ctx, a.home); err != nil {
				return err
			}
		} else {
			a.out.story("the fwd daemon went away; starting it again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, lastRetry)
	}
}

// greet warns of a daemon of another version.
func (a *app) greet(c *daemon.Client) {
	if theirs := c.Greeting.Version; theirs != daemon.Version() {
		a.out.story("daemon %s is running, this is %s; after \"fwd stop\" the next command starts the new one", theirs, daemon.Version())
	}
}

// tell prints the events that mean the same in every command.
func (a *app) tell(e daemon.Event) {
	switch {
	case a.out.json && e.Event == "result" && e.Result != nil:
		a.out.object(e.Result)
	case a.out.json:
		a.out.object(e)
	case e.Event == "progress":
		a.out.stage(e.Message)
	case e.Event == "result" && e.Message != "":
		a.out.dropProgress()
		a.out.answer("%s", e.Message)
	}
}

// done answers that a command has done what it is for, as the daemon does where it is asked.
func (a *app) done(format string, args ...any) {
	a.tell(daemon.Event{Event: "result", Message: fmt.Sprintf(format, args...)})
}

// did is done where a person needs no answer on stdout, only the word that something was done.
func (a *app) did(format string, args ...any) {
	if a.out.json {
		a.done(format, args...)
		return
	}
	a.out.story(format, args...)
}

// list asks for an answer that is one value, and prints it with show, or as JSON.
func list[T any](ctx context.Context, a *app, request any, event string, show func(T)) error {
	return a.ask(ctx, request, listed(a, event, show))
}

func listed[T any](a *app, event string, show func(T)) func(daemon.Event) {
	return func(e daemon.Event) {
		switch {
		case e.Event != event:
			if !a.out.json {
				a.tell(e) // with --json a listing is one object and nothing else
			}
		case a.out.json:
			a.out.object(e.Result)
		default:
			a.out.dropProgress()
			var v T
			if err := json.Unmarshal(e.Result, &v); err != nil {
				a.out.err = err
				return
			}
			show(v)
		}
	}
}
