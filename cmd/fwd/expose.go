package main

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newExpose(a *app) *cobra.Command {
	var req daemon.ExposeRequest
	cmd := &cobra.Command{
		Use:     "expose TARGET",
		GroupID: groupForward,
		Short:   "offer a port of this machine, or near it, to the network",
		Long: `Offer TARGET to the other machines of the network until this command ends; Ctrl-C
ends it and its connections, and nothing else.

Every member may use it, but no relay; --allow says who may instead. On a machine that
is in no network yet, one is made, which this machine then owns.

One name may stand for a TCP and a UDP target, exposed one by one; who may use them is one
list.`,
		Example: `fwd expose 22 --name nas
fwd expose 192.168.1.7:80 --name printer --allow laptop,tag:office
fwd expose 51820/udp --name wg
fwd expose 8000-8010 --name web
fwd expose unix:/var/run/docker.sock --hold 1h`,
		Annotations: map[string]string{
			partArgs:  "TARGET\t22, host:22, [::1]:22, 8000-8010, 53/udp, or unix:/path/to/socket",
			partExits: "3 4",
		},
		Args: words(1, 1),
	}
	cmd.Flags().StringVar(&req.Name, "name", "", "the service's `NAME`; default by the port: ssh, http, …")
	cmd.Flags().StringSliceVar(&req.Allow, "allow", nil, "`WHO` may use it: machine, peer ID, tag:T, members; default members")
	cmd.Flags().BoolVar(&req.Keep, "keep", false, "\"fwd up\" and the service do it too, from now on; if one runs, it takes over")
	hold := spanVar(cmd, "hold", "how long connections outlive an outage, if less than either end's limit: 24h, or [limits] hold in its fwd.toml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		target, err := wholePath(args[0])
		if err != nil {
			return err
		}
		req.Target, req.Hold, req.Tell = target, time.Duration(*hold), a.out.json
		told := false
		err = a.hold(cmd.Context(), func() any { return req }, func(e daemon.Event) {
			if a.out.json || e.Event != "exposed" {
				a.tell(e)
				return
			}
			if told {
				a.out.story("%s is exposed again", e.Service)
				return
			}
			told = true
			name := e.Service
			if len(e.Names) > 0 {
				name = e.Names[0]
			}
			a.out.answer("%s is exposed: on another machine of this network, fwd connect %s", e.Service, name)
		})
		if err == nil && !req.Keep {
			a.out.story("ended by another command")
		}
		return err
	}
	return cmd
}

func newUnexpose(a *app) *cobra.Command {
	var req daemon.UnexposeRequest
	cmd := &cobra.Command{
		Use:     "unexpose NAME",
		GroupID: groupForward,
		Short:   "end an expose, from any terminal",
		Long:    `End an expose from any terminal. One made with --keep is also forgotten.`,
		Annotations: map[string]string{
			partArgs:  "NAME\tthe service, as \"fwd status\" shows it; NAME/tcp or NAME/udp for one of both",
			partExits: "3 8",
		},
		Args: words(1, 1),
	}
	cmd.Flags().BoolVar(&req.Release, "release", false, "also give the short name back, for another machine to take")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Name = args[0]
		return a.endWish(cmd.Context(), req)
	}
	return cmd
}

// endWish is unexpose and disconnect. What is only kept is taken back without a
// daemon too.
func (a *app) endWish(ctx context.Context, request any) error {
	err := a.askRunning(ctx, request, a.tell)
	if errors.Is(err, daemon.ErrNoDaemon) {
		found, forgot := daemon.Forget(a.home, request)
		if found && forgot == nil {
			a.out.story("it was kept, and is no longer")
		}
		// A user may not look into the machine's home; the service, once it runs, can.
		if found || forgot != nil && !errors.Is(forgot, fs.ErrPermission) {
			return forgot
		}
	}
	return err
}

func newAllow(a *app) *cobra.Command { return newAccess(a, false) }
func newDeny(a *app) *cobra.Command  { return newAccess(a, true) }

// newAccess is fwd allow and fwd deny.
func newAccess(a *app, deny bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "allow SERVICE WHO",
		GroupID: groupForward,
		Short:   "let somebody use a service of this machine",
		Long: `Let WHO use SERVICE of this machine, at once and for good. An admin may name
a service of another machine by its long form, SERVICE.MACHINE.`,
		Example: "fwd allow nas laptop\nfwd allow nas.nas-box tag:ops",
	}
	if deny {
		cmd.Use = "deny SERVICE WHO"
		cmd.Short = "refuse somebody a service; open connections end"
		cmd.Long = `Keep WHO from using SERVICE of this machine. Open connections end at once, and
the word stays through restarts and above every --allow. An admin may name a service
of another machine by its long form, SERVICE.MACHINE.`
		cmd.Example = "fwd deny nas phone"
	}
	cmd.Annotations = map[string]string{
		partArgs:  "SERVICE\ta service of this machine, or SERVICE.MACHINE\nWHO\tmachine name, peer ID, tag:T, or members",
		partExits: "3 4 6",
	}
	cmd.Args = words(2, 2)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := daemon.AllowRequest{Service: args[0], Who: args[1], Deny: deny}
		return a.ask(cmd.Context(), req, a.tell)
	}
	return cmd
}

// wholePath makes unix:path a whole one, since the daemon runs in another folder.
func wholePath(word string) (string, error) {
	path, ok := strings.CutPrefix(word, "unix:")
	if !ok || path == "" {
		return word, nil
	}
	whole, err := filepath.Abs(path)
	if err != nil {
		return "", failed("write the whole path", "%s: %v", word, err)
	}
	return "unix:" + whole, nil
}
