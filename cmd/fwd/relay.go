package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newRelay(a *app) *cobra.Command {
	var req daemon.RelayRequest
	cmd := &cobra.Command{
		Use:     "relay [INVITE]",
		GroupID: groupNetwork,
		Short:   "lend this machine's public address to the network",
		Long: `Run as a relay, in the foreground: machines behind NAT find each other here and
talk through it until they have a direct path. It cannot read what it passes on, and
serves nobody outside the network.

On a machine that is in no network yet, one is made, which this machine then owns,
and an invite for the first machine is printed; that machine becomes an admin and may
invite the others.

With INVITE, from "fwd invite --relay", it joins that network first. Where the
network's owner is behind NAT and has no relay yet, "fwd invite --relay --at HOST"
makes a code with which this machine waits for the owner to dial it.

It listens on port 4001, UDP and TCP; open both in the firewall, and 4002, UDP and TCP,
and UDP 4003, which tell machines what their NAT is like. Where the machine itself has
only a private address, as in most clouds, --announce must tell the public one; a domain
name is best, since it can move.

For networks that let nothing out but the web, listen on 443 too: --listen 443 is UDP
and WebSocket over TLS, --listen 443/wss WebSocket alone. No certificate is needed.`,
		Example: `fwd relay
fwd relay --announce vps.example.org
fwd relay fwd1…                     # from: fwd invite --relay --at vps.example.org
fwd relay --listen 4001 --listen 443 --announce vps.example.org`,
		Args: words(0, 1),
	}
	cmd.Annotations = map[string]string{mayBeNew: "yes", partArgs: "INVITE\tfwd1…; on the command line it stays in the shell's history: FWD_RELAY_INVITE does not", partExits: "4 6 7"}
	cmd.Flags().StringSliceVar(&req.Listen, "listen", nil, "`ADDR` to listen on: port or addr:port, perhaps with /udp, /tcp or /wss, or multiaddr; default 4001")
	cmd.Flags().StringSliceVar(&req.Announce, "announce", nil, "`HOST`[:PORT] under which others reach this machine")
	cmd.Flags().IntVar(&req.Uses, "uses", 0, "the first invite lets `N` machines in; default 1")
	cmd.Flags().StringVar(&req.Invite, "invite", "", "join the network of this `INVITE` (from fwd invite --relay) first")
	cmd.Flags().StringVar(&req.Name, "as", "", "this machine's `NAME` in the network; default the host's")
	cmd.Flags().BoolVar(&req.Keep, "keep", false, "\"fwd up\" and the service do it too, from now on")
	metricsVar(cmd, &req.Metrics)
	verbose := verboseVar(cmd)
	forget := cmd.Flags().Bool("forget", false, "take --keep back, and end")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Stderr = a.stderrIs(*verbose)
		if len(args) == 1 {
			req.Invite = args[0]
		}
		if *forget {
			return daemon.ForgetRelay(a.home)
		}
		err := a.relay(cmd.Context(), req)
		var f *daemon.Failure
		if errors.As(err, &f) && f.Exit == daemon.ExitUsage && len(req.Announce) == 0 && strings.Contains(f.Hint, "--announce") && a.mayPrompt() {
			a.out.story("%s", f.What)
			host, err := a.prompt(cmd.Context(), "public address or domain name of this machine: ")
			if err != nil {
				return err
			}
			req.Announce = []string{host}
			return a.relay(cmd.Context(), req)
		}
		return err
	}
	return cmd
}

// stderrIs tells the daemon in the foreground where its log would go. On a terminal its
// lines come in between, so from now on a stage is a line as well.
func (a *app) stderrIs(verbose bool) daemon.Stderr {
	is := daemon.Stderr{Terminal: a.out.rewrite, Verbose: verbose, Service: managed()}
	a.out.rewrite = false
	return is
}

func (a *app) relay(ctx context.Context, req daemon.RelayRequest) error {
	err := daemon.Run(ctx, a.home, req, func(e daemon.Event) {
		a.relayed(e)
	})
	if err == nil {
		err = ctx.Err() // a relay has no end of its own
	}
	return err
}

// relayed tells what a relay says when it starts.
func (a *app) relayed(e daemon.Event) {
	switch {
	case a.out.json:
		a.tell(e)
	case e.Event == "waiting":
		a.out.story("%s", e.Message)
	case e.Event == "relay":
		a.out.story("this machine relays for the network %q at %s", e.Message, relayAddrWords(e.Addrs))
	case e.Event == "invite":
		a.invited(e)
		a.out.story("for each further machine, run \"fwd invite\" here or on that first one")
	default:
		a.tell(e)
	}
}

// relayAddrWords are the relay's addresses with what they speak: "7.0.0.10:4001 (UDP and TCP)".
func relayAddrWords(addrs []string) string {
	speaks := map[string][]string{}
	for _, a := range addrs {
		kind := "TCP"
		switch {
		case strings.Contains(a, "/udp/"):
			kind = "UDP"
		case strings.HasSuffix(a, "/ws"), strings.HasSuffix(a, "/wss"):
			kind = "WebSocket"
		}
		speaks[hostPort(a)] = append(speaks[hostPort(a)], kind)
	}
	var words []string
	for _, at := range uniqueHostPorts(addrs) {
		words = append(words, at+" ("+strings.Join(speaks[at], " and ")+")")
	}
	return strings.Join(words, ", ")
}

// invited prints a code, which is the answer, and its story.
func (a *app) invited(e daemon.Event) {
	if a.out.json {
		a.tell(e)
		return
	}
	a.out.answer("%s", e.Invite)
	a.out.story("%s", e.Message)
}
