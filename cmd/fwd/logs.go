package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/kardianos/service"
	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newLogs(a *app) *cobra.Command {
	var follow bool
	var lines int
	cmd := &cobra.Command{
		Use:     "logs",
		GroupID: groupSelf,
		Short:   "show what this home's daemon wrote to its log",
		Long: `Show the last lines of the daemon's log: its file in the state folder or, where the
service of this home is systemd's, the journal. A daemon in the foreground writes there
too if it has a terminal; else its log is its stderr.`,
		Example: "fwd logs -f\nfwd logs --lines 1000 | grep WARN",
		Args:    noArgs,
	}
	logFlags(cmd, &follow, &lines)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if lines < 0 {
			return usageError(usageLine(cmd), "--lines %d: less than none", lines)
		}
		if a.home == daemon.UserHome() || a.home == daemon.UserHome().In(a.home.Network) || a.home.System {
			return a.serviceLogs(cmd.Context(), a.home.System, lines, follow)
		}
		return a.tail(cmd.Context(), a.home.Log(), lines, follow)
	}
	return cmd
}

func logFlags(cmd *cobra.Command, follow *bool, lines *int) {
	cmd.Flags().BoolVarP(follow, "follow", "f", false, "go on with what it writes from now on")
	cmd.Flags().IntVar(lines, "lines", 100, "the last `N` lines; default 100")
}

// serviceLogs shows systemd's journal where it has the service, else the home's file.
func (a *app) serviceLogs(ctx context.Context, system bool, lines int, follow bool) error {
	s, u, err := a.service(system)
	if err != nil {
		return a.tail(ctx, a.home.Log(), lines, follow)
	}
	if _, err = s.Status(); errors.Is(err, service.ErrNotInstalled) || u.manager != "linux-systemd" {
		return a.tail(ctx, u.home.Log(), lines, follow)
	}
	journalctl, err := exec.LookPath("journalctl")
	if err != nil {
		return failed("", "there is no journalctl: %v", err)
	}
	return replaceBy(journalctl, u.journal(lines, follow))
}

// tailWindow is how much of a log's end is looked at for its last lines: 1 MiB,
// some 5 000 of them.
const tailWindow = 1 << 20

// tailEvery is how often a followed file is looked at.
const tailEvery = 200 * time.Millisecond

// tail prints a log's last lines, from the one before it too if it has been begun
// anew, and what is added to it if asked.
func (a *app) tail(ctx context.Context, path string, lines int, follow bool) error {
	f, err := os.Open(path)
	if err != nil {
		return failed("nothing has run in this home yet, or its log went to where it was started", "%v", err)
	}
	defer f.Close()
	last := lastLines(f)
	if len(last) < lines {
		if old, err := os.Open(path + ".1"); err == nil {
			last = append(lastLines(old), last...)
			old.Close()
		}
	}
	for _, line := range last[max(0, len(last)-lines):] {
		io.WriteString(a.out.stdout, line)
	}
	for follow {
		if _, err := io.Copy(a.out.stdout, f); err != nil {
			return failed("", "read %s: %v", path, err)
		}
		if at, err := f.Seek(0, io.SeekCurrent); err == nil {
			if info, err := f.Stat(); err == nil && info.Size() < at {
				f.Seek(0, io.SeekStart) // it was begun anew
				continue
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(tailEvery):
		}
	}
	return nil
}

// lastLines reads the end of f, and leaves it there.
func lastLines(f *os.File) (list []string) {
	r := bufio.NewReader(f)
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		f.Seek(max(0, end-tailWindow), io.SeekStart)
		if end > tailWindow {
			r.ReadString('\n') // half a line
		}
	}
	for {
		line, err := r.ReadString('\n')
		if line != "" {
			list = append(list, line)
		}
		if err != nil {
			return list
		}
	}
}
