package main

import (
	"context"
	"errors"
	"fmt"

	"fwd/internal/daemon"
)

// exitStatus is what every help text and the manual say about the exit status.
var exitStatus = []struct {
	code int
	text string
}{
	{0, "done"},
	{daemon.ExitFailed, "failed"},
	{daemon.ExitUsage, "wrong usage or configuration"},
	{daemon.ExitUnknownName, "no such name or peer on the roster: do not retry"},
	{daemon.ExitRefused, "refused, a bad invite included: do not retry"},
	{daemon.ExitIdentityChanged, "the identity behind a name changed: do not retry"},
	{daemon.ExitUnreachable, "known, but not reached in time: retry"},
	{daemon.ExitLocalPort, "the local port is not available"},
	{daemon.ExitNoDaemon, "no daemon is running"},
	{130, "interrupted (143: terminated, 129: hung up)"},
}

// finish tells the outcome of a run, once, and returns the exit status.
func (a *app) finish(ctx context.Context, err error) int {
	a.out.endProgress()
	var sig *interrupted
	if err != nil && errors.As(context.Cause(ctx), &sig) {
		return sig.Status() // who pressed Ctrl-C need not be told
	}
	if err == nil {
		err = a.out.err // an answer that did not get out is none
	}
	if err == nil {
		return 0
	}
	if errors.Is(err, errUnwell) {
		return daemon.ExitFailed // the findings are the answer
	}
	if errors.Is(err, errHelpShown) && !a.out.json {
		return daemon.ExitUsage
	}
	f := daemon.FailureOf(err)
	a.out.failure(f)
	if f.Exit == 0 {
		return daemon.ExitFailed
	}
	return f.Exit
}

// errHelpShown is the error of a command line without a command.
var errHelpShown = usageError("fwd --help", "no command")

// usageError is a mistake in the words of a command; hint is what to type instead.
func usageError(hint, format string, args ...any) error {
	return &daemon.Failure{Code: "usage", Exit: daemon.ExitUsage, Hint: hint, What: fmt.Sprintf(format, args...)}
}

// failed is an error that names its mend.
func failed(hint, format string, args ...any) error {
	return &daemon.Failure{Code: "failed", Exit: daemon.ExitFailed, Hint: hint, What: fmt.Sprintf(format, args...)}
}
