//go:build unix

package main

import (
	"context"
	"errors"
	"os/signal"
	"syscall"
	"testing"
)

// nohup starts its command with SIGHUP ignored.
func TestASignalThatTheCallerIgnoresEndsNothing(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	ctx, stop := withSignals(t.Context())
	defer stop()
	syscall.Kill(syscall.Getpid(), syscall.SIGHUP)
	syscall.Kill(syscall.Getpid(), syscall.SIGTERM)
	<-ctx.Done()
	if got := new(interrupted); !errors.As(context.Cause(ctx), &got) || got.signal != syscall.SIGTERM {
		t.Errorf("ended by %v", context.Cause(ctx))
	}
}
