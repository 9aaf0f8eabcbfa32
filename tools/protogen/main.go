//go:build ignore

// Protogen compiles the .proto files of this module and runs the two Go
// plugins on them. It takes the place of the protoc binary, so that generating
// code needs Go's module downloads and nothing else.
//
//	go run -modfile=tools.mod tools/protogen/main.go           writes the files
//	go run -modfile=tools.mod tools/protogen/main.go -check    fails if one would change
//
// It runs in the module's root. The build tag keeps it, and what it imports,
// out of the main module: the file is named on the command line instead.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// parameter makes the plugins write each file beside its source.
const parameter = "paths=source_relative"

func main() {
	log.SetFlags(0)
	log.SetPrefix("protogen: ")
	check := flag.Bool("check", false, "write nothing; fail if a file would change")
	flag.Parse()
	if err := run(*check); err != nil {
		log.Fatal(err)
	}
}

// run generates every file and writes it, or compares it with what is there.
func run(check bool) error {
	sources, err := protoFiles("proto")
	if err != nil {
		return err
	}
	request, err := compile(sources)
	if err != nil {
		return err
	}
	want := map[string]string{}
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		if err := generate(plugin, request, want); err != nil {
			return err
		}
	}
	var stale []string
	for name, content := range want {
		have, err := os.ReadFile(name)
		if err == nil && string(have) == content {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		stale = append(stale, name)
		if check {
			continue
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	orphans, err := orphaned("proto", want)
	if err != nil {
		return err
	}
	return report(check, stale, orphans)
}

// report says what changed; in a check a change is an error.
func report(check bool, stale, orphans []string) error {
	slices.Sort(stale)
	for _, name := range orphans {
		return fmt.Errorf("%s comes from no .proto file any more: remove it", name)
	}
	switch {
	case check && len(stale) > 0:
		return fmt.Errorf("not up to date (run make generate): %s", strings.Join(stale, ", "))
	case check:
		log.Print("generated files are up to date")
	default:
		for _, name := range stale {
			log.Print("wrote ", name)
		}
	}
	return nil
}

// protoFiles lists the .proto files under dir, sorted, with forward slashes.
func protoFiles(dir string) ([]string, error) {
	return find(dir, func(name string) bool { return strings.HasSuffix(name, ".proto") })
}

// orphaned lists the generated files under dir that nothing generates.
func orphaned(dir string, want map[string]string) ([]string, error) {
	return find(dir, func(name string) bool {
		_, wanted := want[name]
		return strings.HasSuffix(name, ".pb.go") && !wanted
	})
}

// find lists the files under dir that match, sorted, with forward slashes.
func find(dir string, match func(string) bool) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name := filepath.ToSlash(path); match(name) {
			found = append(found, name)
		}
		return nil
	})
	slices.Sort(found)
	return found, err
}

// compile returns the request that protoc would send to a plugin. The
// compiler's version is left out on purpose: it would only date the files.
func compile(sources []string) (*pluginpb.CodeGeneratorRequest, error) {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), sources...)
	if err != nil {
		return nil, err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: sources,
		Parameter:      proto.String(parameter),
	}
	seen := map[string]bool{}
	for _, file := range files {
		request.ProtoFile = withImports(file, seen, request.ProtoFile)
	}
	return request, nil
}

// withImports appends the descriptor of file after those that it imports.
func withImports(file linker.File, seen map[string]bool,
	to []*descriptorpb.FileDescriptorProto) []*descriptorpb.FileDescriptorProto {
	if seen[file.Path()] {
		return to
	}
	seen[file.Path()] = true
	imports := file.Imports()
	for i := range imports.Len() {
		to = withImports(file.FindImportByPath(imports.Get(i).Path()), seen, to)
	}
	return append(to, protoutil.ProtoFromFileDescriptor(protoreflect.FileDescriptor(file)))
}

// generate runs one plugin and adds its files, by name, to want.
func generate(plugin string, request *pluginpb.CodeGeneratorRequest, want map[string]string) error {
	in, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	var out, talk bytes.Buffer
	cmd := exec.Command("go", "tool", "-modfile=tools.mod", plugin)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &talk
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", plugin, err, talk.String())
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out.Bytes(), &response); err != nil {
		return fmt.Errorf("%s: %w", plugin, err)
	}
	if response.Error != nil {
		return fmt.Errorf("%s: %s", plugin, response.GetError())
	}
	for _, f := range response.GetFile() {
		want[f.GetName()] = f.GetContent()
	}
	return nil
}
