package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

// A machine may be in several networks: each has a home of its own, and -n says whose
// daemon a command asks.

func newNetworks(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "networks",
		GroupID: groupNetwork,
		Short:   "list the networks that this machine is in",
		Long: `List the networks that this machine is in, with the name by which -n chooses one.
The first one is meant where -n is not given; FWD_NETWORK chooses for a whole shell.

Each has its own key, daemon, state and fwd.toml, in the folder networks below the
first one's. "fwd join" with another network's invite adds one.`,
		Example: "fwd networks\nfwd -n work ls\nfwd join -n work",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			networks, err := daemon.Networks(cmd.Context(), a.first)
			switch {
			case err != nil:
				return err
			case a.out.json:
				a.out.object(networks)
				return nil
			case len(networks) == 0:
				a.out.story("this machine is in no network yet; join one: fwd join")
				return nil
			}
			rows := [][]string{{"NAME", "NETWORK", "MACHINE", "ROLE", "DAEMON"}}
			for _, n := range networks {
				if n.Error != "" {
					a.out.story("%s: %s", n.Home, n.Error)
				}
				running := "-"
				if n.Running {
					running = "runs"
				}
				name := n.Name
				if n.Default {
					name += " *"
				}
				rows = append(rows, []string{name, n.Network, n.Machine, n.Role, running})
			}
			a.out.table(rows)
			a.out.story("* is meant where no -n NAME is given")
			return nil
		},
	}
}

// mayBeNew marks the commands that bring a network into being.
const mayBeNew = "new network"

// chooseNetwork makes the home the one that -n names.
func (a *app) chooseNetwork(cmd *cobra.Command) error {
	if a.network == "" {
		return nil
	}
	home, found, err := daemon.FindNetwork(a.first, a.network)
	switch {
	case err != nil:
		return err
	case !found && cmd.Name() == "logs" && number(a.network):
		return usageError("fwd logs --lines "+a.network, "-n names a network here, as for all commands")
	case !found && cmd.Annotations[mayBeNew] == "":
		return &daemon.Failure{Code: "unknown-network", Exit: daemon.ExitUnknownName, Hint: "see which there are: fwd networks; or join it: fwd join -n " + a.network,
			What: fmt.Sprintf("this machine is in no network called %q", a.network)}
	}
	a.home = home
	return nil
}

func number(word string) bool {
	_, err := strconv.Atoi(word)
	return err == nil
}

// joinFurther puts this machine on another network beside those it is in.
func (a *app) joinFurther(ctx context.Context, req daemon.JoinRequest) error {
	var j daemon.Joined
	home, err := daemon.AddNetwork(ctx, a.first, req.Invite, func(home daemon.Home) (string, error) {
		there := &app{home: home, stdin: a.stdin, out: a.out}
		err := there.joinHere(ctx, req, &j)
		return j.Network, err
	})
	if err != nil {
		return err
	}
	a.tellJoined(j, home)
	return nil
}

// otherNetworks tells who looks at one network of the others.
func (a *app) otherNetworks(ctx context.Context) {
	networks, err := daemon.Networks(ctx, a.first)
	if err != nil {
		return
	}
	for _, n := range networks {
		if n.Home != a.home.State && n.Name != "" {
			a.out.story("this machine is also in %q: fwd -n %s status", n.Network, n.Name)
		}
	}
}
