package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newDebug(a *app) *cobra.Command {
	var req daemon.DebugRequest
	cmd := &cobra.Command{
		Use:     "debug PROFILE",
		GroupID: groupSelf,
		Short:   "take a profile of the running daemon",
		Long: `Write a profile of this home's daemon to stdout, for "go tool pprof" (stacks is plain
text, trace for "go tool trace"). It comes by the control socket: no port is opened.
cpu, trace, block and mutex watch for --for first.

PROFILE is one of ` + strings.Join(daemon.Profiles, ", ") + `.`,
		Example:     "fwd debug cpu --for 30s > cpu.pprof\nfwd debug stacks | head",
		Annotations: map[string]string{partArgs: "PROFILE\twhat to take", partExits: "8"},
		Args:        words(1, 1),
	}
	span := spanVar(cmd, "for", "how long cpu, trace, block and mutex watch; default 10s")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(daemon.Profiles, args[0]) {
			return usageError("fwd debug "+strings.Join(daemon.Profiles, "|"), "there is no profile %q", args[0])
		}
		req.Profile, req.For = args[0], time.Duration(*span)
		var wrote error
		err := a.askRunning(cmd.Context(), req, func(e daemon.Event) {
			var piece []byte
			if e.Event != "profile" || wrote != nil {
				return
			}
			if wrote = json.Unmarshal(e.Result, &piece); wrote == nil {
				_, wrote = a.out.stdout.Write(piece)
			}
		})
		if err == nil && wrote != nil {
			err = fmt.Errorf("write the profile: %w", wrote)
		}
		return err
	}
	return cmd
}
