package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"fwd/identity"
)

// fail makes a Failure; the hint names the next command, or is empty.
func fail(exit int, code, hint, format string, args ...any) *Failure {
	return &Failure{Exit: exit, Code: code, Hint: hint, What: fmt.Sprintf(format, args...)}
}

// usage is a mistake in the command's words or the machine's set-up.
func usage(hint, format string, args ...any) *Failure {
	return fail(ExitUsage, "usage", hint, format, args...)
}

// failureOf is how err is told to a person. What is no Failure yet is a plain
// "failed" with the error's own words.
func failureOf(err error) *Failure {
	var f *Failure
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, errNoService):
		return fail(ExitNoDaemon, "no-daemon", "sudo systemctl start fwd, or if it was uninstalled, sudo fwd service install; why it does not run: fwd service logs", "%v", err)
	case errors.Is(err, ErrNoDaemon):
		return fail(ExitNoDaemon, "no-daemon", "expose or connect something, and there is one", "%v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fail(ExitUnreachable, "unreachable", "", "%s", strings.ReplaceAll(err.Error(), context.DeadlineExceeded.Error(), "no answer in time"))
	}
	var mode *identity.ModeError
	if errors.As(err, &mode) {
		return usage(mode.Mend, "%s is open to other users (mode %04o)", mode.Path, mode.Mode)
	}
	var damaged *identity.DamagedError
	if errors.As(err, &damaged) {
		return fail(ExitUsage, "damaged", "restore it from a backup, or move it away to begin anew", "%s is damaged and was left as it is: %v", damaged.Path, damaged.Err)
	}
	return fail(ExitFailed, "failed", "", "%v", err)
}

// FailureOf is failureOf for cmd/fwd, the one place that tells a person.
func FailureOf(err error) *Failure { return failureOf(err) }
