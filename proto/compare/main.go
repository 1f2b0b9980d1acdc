// Compare tells whether our csi.proto is the CSI specification's, name by name and number by number.
//
// It reads a serialized FileDescriptorSet (ours) and compares it with the descriptor inside the Go package of the
// specification, in both directions. It prints every difference and exits 1, or prints what was compared.
package main

import (
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

const csiPackage = "csi.v1"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: compare DESCRIPTOR_SET")
		os.Exit(2)
	}
	ours, err := read(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(2)
	}
	ourFacts, theirFacts := factsOf(ours), factsOf(csi.File_csi_proto)
	differences := diff(ourFacts, theirFacts)
	for _, line := range differences {
		fmt.Println(line)
	}
	if len(differences) > 0 {
		fmt.Printf("%d differences from CSI v1.12.0\n", len(differences))
		os.Exit(1)
	}
	fmt.Printf("equal to CSI v1.12.0: %s\n", ourFacts.summary())
}

func read(path string) (protoreflect.FileDescriptor, error) {
	bytes, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parse(bytes)
}

// parse finds the file of package csi.v1 in a serialized set. The options are decoded with upstream's extensions,
// so one that we declare under another number stays an unknown field, which is a difference too.
func parse(bytes []byte) (protoreflect.FileDescriptor, error) {
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(bytes, set); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, err
	}
	var found []protoreflect.FileDescriptor
	files.RangeFilesByPackage(csiPackage, func(file protoreflect.FileDescriptor) bool {
		found = append(found, file)
		return true
	})
	if len(found) != 1 {
		return nil, fmt.Errorf("%d files of package %s, want 1", len(found), csiPackage)
	}
	return found[0], nil
}
