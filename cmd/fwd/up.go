package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"fwd/docs"
	"fwd/internal/daemon"
)

func newUp(a *app) *cobra.Command {
	var req daemon.UpRequest
	cmd := &cobra.Command{
		Use:     "up",
		GroupID: groupSelf,
		Short:   "run what fwd.toml says, in the foreground",
		Long: `Run everything that fwd.toml exposes and connects, and what was given with --keep,
until this command ends. It is what a service manager or a container runs;
"fwd service install" sets one up.

What cannot be had yet is waited for, and tried again. When the file changes, the
difference is changed and nothing else: no connection ends but those of what is gone.

A machine that is in no network yet joins with FWD_INVITE, or the file's invite_file.`,
		Example: `fwd up
fwd up -c /etc/fwd/office.toml
FWD_INVITE=$(cat code) fwd up    # the first boot of one among many`,
		Annotations: map[string]string{
			partEnv:   "FWD_INVITE\tthe invite, for a machine that is in no network yet",
			partExits: "4 7",
			mayBeNew:  "yes",
		},
		Args: noArgs,
	}
	cmd.Flags().StringVarP(&req.Config, "config", "c", "", "the `FILE`; default fwd.toml in the configuration folder, if there is one")
	metricsVar(cmd, &req.Metrics)
	verbose := verboseVar(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Stderr = a.stderrIs(*verbose)
		req.Invite = strings.TrimSpace(os.Getenv("FWD_INVITE"))
		os.Unsetenv("FWD_INVITE") // nothing started from here needs it
		if req.Config != "" {
			whole, err := filepath.Abs(req.Config)
			if err != nil {
				return usageError("write the whole path", "%s: %v", req.Config, err)
			}
			req.Config = whole
		}
		return a.underManager(cmd.Context(), func(ctx context.Context) error { return a.up(ctx, req) })
	}
	return cmd
}

func (a *app) up(ctx context.Context, req daemon.UpRequest) error {
	listens := map[string]bool{}
	err := daemon.Up(ctx, a.home, req, func(e daemon.Event) {
		switch {
		case a.out.json:
			a.tell(e)
		case e.Event == "exposed":
			name := e.Service
			if len(e.Names) > 0 {
				name = e.Names[0]
			}
			a.out.answer("%s is exposed: on another machine of this network, fwd connect %s", e.Service, name)
		case e.Event == "listening":
			if at := e.Local + " for " + e.Service; !listens[at] { // each try begins with it
				listens[at] = true
				a.out.answer("listening on %s", at)
			}
		case e.Event == "joined":
			a.sayJoined(a.joined(e))
		case e.Event == "wish-failed":
			// The log has it; it is for --json.
		default:
			a.relayed(e)
		}
	})
	if err == nil {
		err = ctx.Err() // ended by a signal, not by fwd stop
	}
	return err
}

func newReload(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "reload",
		GroupID: groupSelf,
		Short:   "have \"fwd up\" read fwd.toml again",
		Long: `Have the daemon that "fwd up" or the service runs read fwd.toml again, and print what
that changed. The file is watched, so this is only needed to know at once. A file with
a mistake changes nothing.`,
		Annotations: map[string]string{partExits: "8"},
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.askRunning(cmd.Context(), daemon.ReloadRequest{}, a.tell)
			if errors.Is(err, daemon.ErrNoDaemon) && !a.home.System {
				f := *daemon.FailureOf(err)
				f.Hint = "what fwd.toml says is run by: fwd up"
				return &f
			}
			return err
		},
	}
}

func newConfig(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		GroupID: groupSelf,
		Short:   "check fwd.toml, or print one to begin with",
		Args:    subcommands,
		RunE:    func(cmd *cobra.Command, args []string) error { return nil },
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "check [FILE]",
		Short:   "say whether fwd.toml is right, and which line is not",
		Example: "fwd config check\nfwd config check ./office.toml",
		Annotations: map[string]string{
			partArgs: "FILE\tdefault fwd.toml in the configuration folder",
		},
		Args: words(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := ""
			if len(args) == 1 {
				path = args[0]
			}
			c, err := daemon.CheckConfig(a.home, path)
			switch {
			case err != nil:
				return err
			case a.out.json:
				a.out.object(c)
			default:
				relay, socks := "", ""
				if c.Socks > 0 {
					socks = ", " + count(c.Socks, "SOCKS port")
				}
				if c.Relay {
					relay = ", and a relay"
				}
				a.out.answer("%s is right: %s, %s%s", c.Path, count(c.Exposes, "expose"), count(c.Connects, "connect"), socks+relay)
			}
			return nil
		},
	})
	cmd.AddCommand(&cobra.Command{
		Use:     "example",
		Short:   "print a fwd.toml that shows every key",
		Example: "fwd config example > fwd.toml    # then edit it: what it shows are examples, not yours",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.out.answer("%s", strings.TrimSuffix(docs.Example, "\n"))
			return nil
		},
	})
	return cmd
}
