package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// The command reference (docs/cli.md) and the manual page are made of the same parts
// as --help, so that they cannot tell another story.

func newMan(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "man [FOLDER]",
		GroupID: groupSelf,
		Short:   "print the manual page, or write it to a folder as fwd.1",
		Example: "fwd man | man -l -\nsudo fwd man /usr/local/share/man/man1",
		Annotations: map[string]string{
			partArgs: "FOLDER\twhere fwd.1 goes",
		},
		Args: words(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			page := manual(cmd.Root())
			if len(args) == 0 {
				a.out.answer("%s", strings.TrimSuffix(page, "\n"))
				return nil
			}
			if err := os.WriteFile(filepath.Join(args[0], "fwd.1"), []byte(page), 0o644); err != nil {
				return failed("fwd man | man -l -", "write the manual page: %v", err)
			}
			return nil
		},
	}
}

// eachCommand visits the commands that are told of, in the help's order.
func eachCommand(root *cobra.Command, visit func(*cobra.Command)) {
	for _, group := range root.Groups() {
		for _, c := range root.Commands() {
			if c.GroupID != group.ID || !c.IsAvailableCommand() {
				continue
			}
			visit(c)
			for _, sub := range c.Commands() {
				if sub.IsAvailableCommand() {
					visit(sub)
				}
			}
		}
	}
}

// reference is docs/cli.md.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# Commands\n\nMade from the commands' own help by `go test ./cmd/fwd -update`.\n\n")
	fmt.Fprintf(&b, "%s\n\n%s\n", root.Long, fenced(root.Example))
	for _, group := range root.Groups() {
		fmt.Fprintf(&b, "\n| %s | |\n|---|---|\n", strings.TrimSuffix(group.Title, ":"))
		for _, row := range commandRows(root, group.ID) {
			fmt.Fprintf(&b, "| [`fwd %s`](#fwd-%s) | %s |\n", row[0], row[0], row[1])
		}
	}
	markdownTable(&b, "Exit status", exitRows(root))
	markdownTable(&b, "Environment", envRows(root))
	eachCommand(root, func(cmd *cobra.Command) {
		fmt.Fprintf(&b, "\n## %s\n\n", cmd.CommandPath())
		fmt.Fprintf(&b, "%s\n\n%s\n", fenced(usageLine(cmd)+flagsWord(cmd)), about(cmd))
		markdownTable(&b, "Argument", partRows(cmd, partArgs))
		markdownTable(&b, "Flag", flagRows(cmd))
		if cmd.Example != "" {
			fmt.Fprintf(&b, "\n%s\n", fenced(cmd.Example))
		}
		markdownTable(&b, "Environment", partRows(cmd, partEnv))
		var codes []string
		for _, row := range exitRows(cmd) {
			codes = append(codes, row[0])
		}
		if len(codes) > 0 {
			fmt.Fprintf(&b, "\nExit status: %s.\n", strings.Join(codes, ", "))
		}
	})
	return b.String()
}

// about is a command's description in whole sentences.
func about(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return strings.ToUpper(cmd.Short[:1]) + cmd.Short[1:] + "."
}

func fenced(s string) string { return "```\n" + strings.TrimSpace(s) + "\n```" }

// markdownTable prints rows, or nothing.
func markdownTable(b *strings.Builder, head string, rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n| %s | |\n|---|---|\n", head)
	for _, row := range rows {
		name := ""
		if row[0] != "" {
			name = "`" + row[0] + "`"
		}
		fmt.Fprintf(b, "| %s | %s |\n", name, strings.ReplaceAll(row[1], "|", "\\|"))
	}
}

// manual is fwd.1, in man(7) macros.
func manual(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(".TH FWD 1\n.SH NAME\nfwd \\- " + roff(root.Short) + "\n")
	b.WriteString(".SH SYNOPSIS\n.B fwd\n.I command\n[\\fIarguments\\fR] [\\fIflags\\fR]\n")
	b.WriteString(".SH DESCRIPTION\n" + roffText(root.Long) + "\n" + roffExample(root.Example))
	b.WriteString(".SH COMMANDS\n")
	eachCommand(root, func(cmd *cobra.Command) {
		fmt.Fprintf(&b, ".SS %s\n%s\n", roff(usageLine(cmd)), roffText(about(cmd)))
		roffRows(&b, partRows(cmd, partArgs))
		roffRows(&b, flagRows(cmd))
		if cmd.Example != "" {
			b.WriteString(roffExample(cmd.Example))
		}
	})
	b.WriteString(".SH ENVIRONMENT\n")
	roffRows(&b, envRows(root))
	b.WriteString(".SH EXIT STATUS\n")
	roffRows(&b, exitRows(root))
	return b.String()
}

func roffRows(b *strings.Builder, rows [][2]string) {
	for _, row := range rows {
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(row[0]), roff(row[1]))
	}
}

// roffText keeps the paragraphs.
func roffText(s string) string {
	return strings.ReplaceAll(roff(s), "\n\n", "\n.PP\n")
}

func roffExample(s string) string {
	return ".PP\n.nf\n.RS\n" + roff(strings.TrimSpace(s)) + "\n.RE\n.fi\n"
}

// roff escapes what troff would read as its own.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...").Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
