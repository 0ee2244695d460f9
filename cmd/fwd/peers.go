package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newPeers(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "peers",
		GroupID: groupNetwork,
		Short:   "list the machines of the network",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return list(cmd.Context(), a, daemon.PeersRequest{}, "peers", func(peers []daemon.PeerEntry) {
				rows := [][]string{{"NAME", "ROLE", "MAY", "TAGS", "SEEN", "PATH", "VERSION", "PEER"}}
				for _, p := range peers {
					rows = append(rows, []string{p.Name, p.Role, may(p), strings.Join(p.Tags, ","), seen(p, time.Now()), pathWords(p.Path), p.Version, p.Peer})
				}
				if w := a.out.width(); w > 0 && tableWidth(rows) > w { // names serve as well
					for _, row := range rows[1:] {
						id := &row[len(row)-1]
						*id = "…" + (*id)[max(0, len(*id)-idTail):]
					}
				}
				a.out.table(rows)
			})
		},
	}
}

// idTail is how much of a peer ID tells machines apart on a narrow screen; all IDs begin alike.
const idTail = 6

func may(p daemon.PeerEntry) string {
	text := strings.Join(p.Caps, ",")
	if p.Expires != nil {
		text += " until " + p.Expires.Local().Format("2 Jan 15:04")
	}
	return text
}

func seen(p daemon.PeerEntry, now time.Time) string {
	switch {
	case p.Self:
		return "this one"
	case p.Path != nil:
		return "now"
	case p.LastSeen == nil:
		return ""
	}
	d := now.Sub(*p.LastSeen)
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return count(int(d.Minutes()), "minute") + " ago"
	case d < 48*time.Hour:
		return count(int(d.Hours()), "hour") + " ago"
	}
	return count(int(d.Hours()/24), "day") + " ago"
}

func newRevoke(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke PEER",
		GroupID: groupNetwork,
		Short:   "remove a machine from the network, at once",
		Long: `Remove a machine from the network. The others end their connections with it within
a second; it does not come back without a new invite, for the one by which it came ends,
even if that was for further machines. Works on the owner and on admins.`,
		Example: "fwd revoke phone",
		Annotations: map[string]string{
			partArgs:  "PEER\tmachine name or peer ID, as \"fwd peers\" lists it",
			partExits: "3 4 6",
		},
		Args: words(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), daemon.RevokeRequest{Peer: args[0]}, a.tell)
		},
	}
}

func newRename(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rename PEER NAME",
		GroupID: groupNetwork,
		Short:   "give a machine another name",
		Example: "fwd rename nas-box attic",
		Annotations: map[string]string{
			partArgs:  "PEER\tmachine name or peer ID, as \"fwd peers\" lists it\nNAME\tlower-case letters, digits and hyphens",
			partExits: "3 4 6",
		},
		Args: words(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), daemon.RenameRequest{Peer: args[0], Name: args[1]}, a.tell)
		},
	}
}

func newTrust(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "trust NAME",
		GroupID: groupNetwork,
		Short:   "accept that another machine stands behind a name now",
		Long: `This machine remembers which key stood behind a name when it was first used, and
connects to no other. If that changed and should have, as when a service moved to a
new machine, this accepts it. "fwd id hand-over" on the old machine spares everybody this.`,
		Annotations: map[string]string{
			partArgs:  "NAME\tthe service, as written to \"fwd connect\"",
			partExits: "3",
		},
		Args: words(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), daemon.TrustRequest{Name: args[0]}, a.tell)
		},
	}
}
