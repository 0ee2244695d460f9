package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newLeave(a *app) *cobra.Command {
	var req daemon.LeaveRequest
	cmd := &cobra.Command{
		Use:     "leave",
		GroupID: groupNetwork,
		Short:   "take this machine off its network",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&req.Purge, "purge", false, "forget this machine's identity too; what stays is the configuration, the log, and network-ID.key of a network that it owned")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		told := false
		err := a.ask(cmd.Context(), req, func(e daemon.Event) {
			told = told || e.Event == "result"
			a.tell(e)
		})
		if errors.Is(err, daemon.ErrLost) && req.Purge {
			err = nil // the daemon ended with its identity
		}
		if err == nil && !told {
			a.did("this machine was in no network; its identity is forgotten")
		}
		return err
	}
	return cmd
}

func newStop(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "stop",
		GroupID: groupSelf,
		Short:   "end this home's background daemon",
		Long: `End the daemon that runs in the background for this home, and with it every expose
and connect. It ends by itself a minute after the last of them.`,
		Annotations: map[string]string{partExits: "8"},
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if err := daemon.Stop(ctx, a.home); err != nil {
				return err
			}
			if err := a.awaitEnd(ctx); err != nil {
				return err
			}
			a.did("the daemon has ended, and every expose and connect with it")
			return nil
		},
	}
}

// stopTimeout is how long "fwd stop" waits until the daemon is gone: 15 s, above the
// daemon's own 10 s for ending its connections.
const stopTimeout = 15 * time.Second

// awaitEnd waits until the daemon is gone.
func (a *app) awaitEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if daemon.AwaitEnd(ctx, a.home) != nil {
		return failed("read why: "+a.home.Log(), "the daemon has not ended after %s", stopTimeout)
	}
	return nil
}

func newID(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "id",
		GroupID: groupSelf,
		Short:   "print this machine's peer ID",
		Long: `Print this machine's peer ID, the public half of its key. Others remember which one
stood behind a service's name; when the machine gets a new key, let the old one say so.`,
		Annotations: map[string]string{partAlone: "yes"},
		Args:        unknownCommand,
		RunE: func(cmd *cobra.Command, args []string) error {
			var s daemon.Status
			err := a.ask(cmd.Context(), daemon.StatusRequest{}, func(e daemon.Event) {
				if e.Event == "status" {
					a.out.err = json.Unmarshal(e.Result, &s)
				}
			})
			switch {
			case err != nil:
				return err
			case a.out.json:
				a.out.object(identity{Peer: s.Peer, Name: s.Name})
			default:
				a.out.answer("%s", s.Peer)
			}
			return nil
		},
	}
	cmd.AddCommand(newIDHandOver(a))
	return cmd
}

func newIDHandOver(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "hand-over PEER",
		Short: "have those who trust this machine's key trust another machine's",
		Long: `Say with this machine's key that another machine takes its place, while this one still
runs. Whoever remembers this key by a service's name then follows to the other machine
when the name becomes its own, without "fwd trust"; open connections stay while this
one belongs. Nobody else can say it, the network's owner included.

The other machine may be in the network already: there, "fwd expose TARGET --name NAME"
takes a name over. Or it joins by "fwd invite --replace" and gets all that this one had;
then PEER is what "fwd id" prints there. Said again, the last word counts; "fwd revoke"
of this machine takes it back for those who have not followed yet.`,
		Example: "fwd id hand-over nas-2\nfwd id hand-over 12D3KooW…",
		Annotations: map[string]string{
			partArgs:  "PEER\tmachine name as \"fwd peers\" lists it, or peer ID",
			partExits: "3 4 6",
		},
		Args: words(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), daemon.HandOverRequest{Peer: args[0]}, a.tell)
		},
	}
}

// identity is what `fwd id --json` prints.
type identity struct {
	Peer string `json:"peer"`
	Name string `json:"name"`
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		GroupID: groupSelf,
		Short:   "print this program's version",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.version()
			return nil
		},
	}
}

// versionOf is what `fwd version --json` prints.
type versionOf struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func (a *app) version() {
	if a.out.json {
		a.out.object(versionOf{Version: daemon.Version(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH})
		return
	}
	a.out.answer("%s", versionLine())
}

func versionLine() string {
	return fmt.Sprintf("fwd %s %s/%s %s", daemon.Version(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}

func newCompletion(a *app) *cobra.Command {
	shells := map[string]func(*cobra.Command) error{
		"bash":       func(root *cobra.Command) error { return root.GenBashCompletionV2(a.out.stdout, true) },
		"zsh":        func(root *cobra.Command) error { return root.GenZshCompletion(a.out.stdout) },
		"fish":       func(root *cobra.Command) error { return root.GenFishCompletion(a.out.stdout, true) },
		"powershell": func(root *cobra.Command) error { return root.GenPowerShellCompletionWithDesc(a.out.stdout) },
	}
	return &cobra.Command{
		Use:       "completion SHELL",
		GroupID:   groupSelf,
		Short:     "print a shell's completion script",
		Example:   "source <(fwd completion bash)\nfwd completion fish > ~/.config/fish/completions/fwd.fish",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Annotations: map[string]string{
			partArgs: "SHELL\tbash, zsh, fish or powershell",
		},
		Args: words(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			script, ok := shells[args[0]]
			if !ok {
				return usageError("bash, zsh, fish or powershell", "no completion for %q", args[0])
			}
			return script(cmd.Root())
		},
	}
}
