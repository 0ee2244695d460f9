package main

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

// Names are completed by asking the daemon, if one runs: it answers from memory.

// completeWait is how long a shell waits for the daemon's answer to Tab.
const completeWait = time.Second

func (a *app) names() (n daemon.Names) {
	if a.network != "" { // nothing is run before a completion
		home, found, err := daemon.FindNetwork(a.first, a.network)
		if err != nil || !found {
			return n
		}
		a.home = home
	}
	ctx, cancel := context.WithTimeout(context.Background(), completeWait)
	defer cancel()
	c, err := daemon.Dial(ctx, a.home)
	if err != nil {
		return n
	}
	c.Call(ctx, daemon.NamesRequest{}, func(e daemon.Event) {
		if e.Event == "names" {
			json.Unmarshal(e.Result, &n)
		}
	})
	return n
}

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completing completes the first word with one of each list, and further words by
// then, each with its own.
func (a *app) completing(each ...func(daemon.Names) []string) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(each) || each[len(args)] == nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return each[len(args)](a.names()), cobra.ShellCompDirectiveNoFileComp
	}
}

func services(n daemon.Names) []string { return n.Services }
func machines(n daemon.Names) []string { return n.Machines }
func exposed(n daemon.Names) []string  { return n.Exposed }
func locals(n daemon.Names) []string   { return n.Locals }

func reachable(n daemon.Names) []string { return append(n.Machines, n.Services...) }

// whos are the words for --allow, allow and deny.
func whos(n daemon.Names) []string {
	list := append(n.Machines, "members")
	for _, t := range n.Tags {
		list = append(list, "tag:"+t)
	}
	return list
}

// completeFlag completes the last of a flag's words, which commas separate.
func (a *app) completeFlag(cmd *cobra.Command, flag string, of func(daemon.Names) []string) {
	cmd.RegisterFlagCompletionFunc(flag, func(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		before := word[:strings.LastIndexByte(word, ',')+1]
		var list []string
		for _, name := range of(a.names()) {
			list = append(list, before+name)
		}
		return list, cobra.ShellCompDirectiveNoFileComp
	})
}

// networkNames complete -n.
func (a *app) networkNames(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
	networks, err := daemon.Networks(context.Background(), a.first)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, n := range networks {
		if n.Name != "" {
			names = append(names, n.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// addCompletions gives each command's words the names that live in the network.
func addCompletions(a *app, root *cobra.Command) {
	root.RegisterFlagCompletionFunc("network", a.networkNames)
	for path, each := range map[string][]func(daemon.Names) []string{
		"connect":    {services, nil},
		"unexpose":   {exposed},
		"disconnect": {locals},
		"ping":       {reachable},
		"speed":      {reachable},
		"allow":      {exposed, whos},
		"deny":       {exposed, whos},
		"revoke":     {machines},
		"rename":     {machines},
		"trust":      {services},

		"id hand-over": {machines},
	} {
		if cmd, _, err := root.Find(strings.Fields(path)); err == nil && cmd != root {
			cmd.ValidArgsFunction = a.completing(each...)
		}
	}
	for name, flags := range map[string]map[string]func(daemon.Names) []string{
		"expose": {"allow": whos},
		"invite": {"only": services, "replace": machines},
	} {
		cmd, _, err := root.Find([]string{name})
		if err != nil {
			continue
		}
		for flag, of := range flags {
			a.completeFlag(cmd, flag, of)
		}
	}
}
