package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newJoin(a *app) *cobra.Command {
	var req daemon.JoinRequest
	var file string
	cmd := &cobra.Command{
		Use:     "join [INVITE]",
		GroupID: groupNetwork,
		Short:   "add this machine to a network, with an invite code",
		Long: `Add this machine to a network with an invite code, which "fwd invite" or "fwd relay"
printed there. Without INVITE it is read from --file, FWD_INVITE or standard input, or
asked for; an invite on the command line works too, but stays in the shell's history.

On a machine that already belongs to that network this does nothing and succeeds. One
that belongs to another one is in both afterwards: "fwd networks" lists them, and -n
chooses. A network that only this machine was ever in is replaced.`,
		Example: `fwd join
ssh vps fwd invite | fwd join --as laptop
fwd join -n work                    # one more network, called so on this machine
fwd join --at 203.0.113.20:4001     # the relay has moved`,
		Annotations: map[string]string{
			partArgs:  "INVITE\tfwd1…",
			partEnv:   "FWD_INVITE\tthe invite",
			mayBeNew:  "yes",
			partExits: "4 6",
		},
		Args: words(0, 1),
	}
	cmd.Flags().StringVar(&req.As, "as", "", "this machine's `NAME` in the network; default the host's")
	cmd.Flags().StringVar(&req.At, "at", "", "a relay of the network has moved to `HOST`[:PORT]")
	cmd.Flags().StringVar(&file, "file", "", "read the invite from `FILE`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if req.At != "" {
			return a.join(ctx, req)
		}
		var err error
		switch code := os.Getenv("FWD_INVITE"); {
		case len(args) == 1:
			req.Invite = args[0]
			a.out.story("note: an invite on the command line stays in the shell's history; \"fwd join\" alone asks for it")
		case file != "":
			req.Invite, err = readSecret("invite", file)
		case code != "":
			req.Invite = code
		default:
			return a.joinAsking(ctx, req)
		}
		if err != nil {
			return err
		}
		return a.join(ctx, req)
	}
	return cmd
}

// joinAsking gets the invite from standard input, unless there is no need of one.
func (a *app) joinAsking(ctx context.Context, req daemon.JoinRequest) error {
	if a.mayPrompt() {
		err := a.join(ctx, req) // a machine that belongs somewhere says so
		switch f := daemon.FailureOf(err); {
		case err == nil, f.Exit != daemon.ExitUsage && f.Code != daemon.CodeRevoked:
			return err
		case f.Code == daemon.CodeRevoked:
			a.out.story("%s", f.What)
		}
		req.Invite, err = a.prompt(ctx, "invite: ")
		if err != nil {
			return err
		}
		return a.join(ctx, req)
	}
	text, err := a.readInput(ctx)
	if err != nil {
		return failed("fwd join --file FILE", "read the invite from standard input: %v", err)
	}
	req.Invite = strings.TrimSpace(text)
	return a.join(ctx, req)
}

// join redeems an invite where its network is already, else in the home that is meant;
// where that is in another network, as a further one.
func (a *app) join(ctx context.Context, req daemon.JoinRequest) error {
	here := *a
	if a.network == "" {
		here.home = daemon.HomeFor(a.first, req.Invite)
	}
	var j daemon.Joined
	err := here.joinHere(ctx, req, &j)
	if err == nil {
		home, err := daemon.NameHome(ctx, a.first, here.home, j.Network)
		if err == nil {
			a.tellJoined(j, home)
		}
		return err
	}
	if a.network == "" && daemon.FailureOf(err).Code == daemon.CodeElsewhere {
		return a.joinFurther(ctx, req)
	}
	return err
}

func (a *app) joinHere(ctx context.Context, req daemon.JoinRequest, j *daemon.Joined) error {
	return a.ask(ctx, req, func(e daemon.Event) {
		switch {
		case e.Event == "joined":
			*j = a.joined(e)
		case !a.out.json: // with it the answer is one object and nothing else
			a.tell(e)
		}
	})
}

// joined is what the event of that name says.
func (a *app) joined(e daemon.Event) (j daemon.Joined) {
	if err := json.Unmarshal(e.Result, &j); err != nil {
		a.out.err = err
	}
	return j
}

// tellJoined is join's answer: that this machine is on the network, and what may come next.
func (a *app) tellJoined(j daemon.Joined, home daemon.Home) {
	j.Use = home.Network
	if a.out.json {
		a.out.object(j)
		return
	}
	a.sayJoined(j)
	if j.Use != "" {
		a.out.story("next, with -n for this network: fwd -n %s ls", j.Use)
	} else {
		a.out.story("next: fwd ls, or fwd expose PORT --name NAME")
	}
}

// sayJoined says which network it is, and as whom, to a person.
func (a *app) sayJoined(j daemon.Joined) {
	a.out.dropProgress()
	if j.Again {
		a.out.answer("already in %q as %s", j.Network, j.Name)
	} else {
		a.out.answer("joined %q as %s", j.Network, j.Name)
	}
}

func newInvite(a *app) *cobra.Command {
	var req daemon.InviteRequest
	var listing bool
	var cancel string
	cmd := &cobra.Command{
		Use:     "invite",
		GroupID: groupNetwork,
		Short:   "print a code that lets another machine in",
		Long: `Print a code with which "fwd join" adds another machine to the network: once, within
24 hours, as a member, unless the flags say otherwise. Works on the network's owner
and on admins. Who has the code can join, so give it to that machine's person only.

With --list it shows which invites were given out and what is left of them; with --cancel
one of them lets nobody else in. Who came by it stays, until "fwd revoke".`,
		Example: `fwd invite
fwd invite --only nas --for 2h      # a guest: this service, two hours
fwd invite --relay                  # for a second VPS
fwd invite --relay --at vps.example.org   # for the first one, where this machine is behind NAT
fwd invite --replace laptop         # it was set up anew and lost its key
fwd invite --list
fwd invite --cancel 5f0c2a9be1d34867`,
		Args: noArgs,
	}
	cmd.Annotations = map[string]string{partExits: "3 4 6"}
	cmd.Flags().IntVar(&req.Uses, "uses", 0, "for `N` machines; default 1")
	expires := spanVar(cmd, "expires", "how long the code is good; default 24h")
	access := spanVar(cmd, "for", "how long the machine then belongs; default for good")
	cmd.Flags().StringSliceVar(&req.Only, "only", nil, "a guest, who may use only this `SERVICE`,…")
	cmd.Flags().BoolVar(&req.Device, "device", false, "a device, which may only expose")
	cmd.Flags().BoolVar(&req.Relay, "relay", false, "a relay")
	cmd.Flags().StringVar(&req.At, "at", "", "with --relay, by an owner that nobody can dial: the relay waits at `HOST`[:PORT], and the owner dials it")
	cmd.Flags().BoolVar(&req.Admin, "admin", false, "a member who may also invite, revoke and rename")
	cmd.Flags().StringSliceVar(&req.Tags, "tag", nil, "mark it with `TAG`,… for --allow tag:TAG")
	cmd.Flags().StringVar(&req.Replace, "replace", "", "take the place of `PEER`, with its name, grants and tags")
	cmd.Flags().BoolVar(&listing, "list", false, "list the invites that were given out; no code is shown")
	cmd.Flags().StringVar(&cancel, "cancel", "", "end the invite `ID`, as --list shows it; its code will do, too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := alone(cmd, "list", "cancel"); err != nil {
			return err
		}
		switch {
		case listing:
			return a.invites(cmd.Context())
		case cancel != "":
			return a.ask(cmd.Context(), daemon.CancelInviteRequest{ID: cancel}, a.tell)
		}
		if err := atMostOne(cmd, "only", "device", "relay"); err != nil {
			return err
		}
		if err := atMostOne(cmd, "only", "admin"); err != nil {
			return err
		}
		req.Expires, req.For = time.Duration(*expires), time.Duration(*access)
		if cmd.Flags().Changed("uses") && req.Uses < 1 {
			return usageError(usageLine(cmd)+" --uses 1", "--uses %d: a code is for one machine or more", req.Uses)
		}
		return a.ask(cmd.Context(), req, func(e daemon.Event) {
			if e.Event == "invite" {
				a.invited(e)
				return
			}
			a.tell(e)
		})
	}
	return cmd
}

// invites prints what became of the invites that were given out.
func (a *app) invites(ctx context.Context) error {
	return list(ctx, a, daemon.InvitesRequest{}, "invites", func(invites []daemon.InviteEntry) {
		if len(invites) == 0 {
			a.out.story("no invite is known; make one: fwd invite")
			return
		}
		rows := [][]string{{"INVITE", "MAKES", "TAGS", "USED", "STATE", "UNTIL"}}
		for _, i := range invites {
			rows = append(rows, []string{i.ID, i.Makes(), strings.Join(i.Tags, ","), fmt.Sprintf("%d of %d", i.Used, i.Uses), i.State, i.Expires.Local().Format("2 Jan 15:04")})
		}
		a.out.table(rows)
	})
}
